"""The steps all of these layers share, on pooled heads (B, H, N, D)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def project(module: nn.Module, x: Tensor) -> list[Tensor]:
    """(B, N, C) -> q, k, v (B, H, N, D) of one fused or three separate projections."""
    if hasattr(module, "qkv"):
        parts = module.qkv(x).chunk(3, dim=-1)
    else:
        parts = [linear(x) for linear in (module.q, module.k, module.v)]
    return [heads(part, module.num_heads) for part in parts]


def heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def pool(x: Tensor, op: nn.Module | None, norm: nn.Module | None, grid, cls: bool) -> tuple[Tensor, object]:
    """The pooling module on the grid tokens, the cls token put back in front, then the norm."""
    if op is None:
        return x, grid
    first, rest = x[:, :, : int(cls)], x[:, :, int(cls) :]
    maps = rest.flatten(0, 1).transpose(1, 2).unflatten(2, [int(n) for n in grid])
    maps = op(maps)
    rest = maps.flatten(2).transpose(1, 2).unflatten(0, x.shape[:2])
    y = torch.cat((first, rest), dim=2)
    return (y if norm is None else norm(y)), list(maps.shape[2:])


def pool_qkv(module: nn.Module, qkv: list[Tensor], grid, cls: bool):
    """Each branch by `pool_x` and `norm_x`: ((q, grid), (k, grid), (v, grid))."""
    return [
        pool(part, getattr(module, f"pool_{x}"), getattr(module, f"norm_{x}", None), grid, cls)
        for x, part in zip("qkv", qkv, strict=True)
    ]


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None, cls: bool = False) -> Tensor:
    scores = scale * q @ k.transpose(-1, -2)
    if bias is not None:
        c = int(cls)
        scores = F.pad(bias, (c, 0, c, 0)) + scores
    return scores.softmax(-1) @ v


def rel_pos_bias(q: Tensor, tables, grid_q, grid_k, cls: bool, resize: str = "thw") -> Tensor:
    """(B, H, Nq, Nk) without cls: the sum over axes of <q, row of the table>; an axis without table is None.

    The tables of the axes in `resize` are interpolated where they do not fit.
    """
    queries = q[:, :, int(cls) :].unflatten(2, [int(n) for n in grid_q])
    axes = len(grid_q)
    total = None
    for axis, table in enumerate(tables):
        if table is None:
            continue
        rows = select(table, int(grid_q[axis]), int(grid_k[axis]), "thw"[3 - axes :][axis] in resize)  # (Qa, Ka, D)
        term = torch.einsum("...qd,qkd->...qk", queries.movedim(2 + axis, -2), rows).movedim(-2, 2 + axis)
        shape = [*term.shape[:-1], *([1] * axes)]
        shape[2 + axes + axis] = term.shape[-1]
        term = term.reshape(shape)
        total = term if total is None else total + term
    full = total.expand(*total.shape[: 2 + axes], *[int(n) for n in grid_k])
    return full.flatten(2 + axes).flatten(2, 1 + axes)


def select(table: Tensor, num_q: int, num_k: int, resize: bool) -> Tensor:
    rows = 2 * max(num_q, num_k) - 1
    if resize and len(table) != rows:
        table = F.interpolate(table.T[None], rows, mode="linear")[0].T
    stretch_q, stretch_k = max(num_k / num_q, 1.0), max(num_q / num_k, 1.0)
    distance = torch.arange(num_q)[:, None] * stretch_q - torch.arange(num_k)[None] * stretch_k
    return table[(distance + (num_k - 1) * stretch_k).long()]


def make_pools(module: nn.Module, mode: str, kernel_q, kernel_kv, stride_q, stride_kv, channels: int, norm, dims: int):
    """`pool_x` and, for convolutions, `norm_x`; none where kernel and stride are all ones or the kernel is empty."""
    kinds = {
        "conv": (nn.Conv3d, nn.Conv2d),
        "conv_unshared": (nn.Conv3d, nn.Conv2d),
        "avg": (nn.AvgPool3d, nn.AvgPool2d),
        "max": (nn.MaxPool3d, nn.MaxPool2d),
    }
    kind = kinds[mode][0 if dims == 3 else 1]
    for x, kernel, stride in (("q", kernel_q, stride_q), ("k", kernel_kv, stride_kv), ("v", kernel_kv, stride_kv)):
        absent = len(kernel) == 0 or (math.prod(kernel) == 1 and math.prod(stride) == 1)
        padding = [n // 2 for n in kernel]
        op = None
        if not absent and mode in ("avg", "max"):
            op = kind(kernel, stride, padding)
        elif not absent:
            op = kind(channels, channels, kernel, stride, padding, groups=channels, bias=False)
        setattr(module, f"pool_{x}", op)
        if mode.startswith("conv"):
            setattr(module, f"norm_{x}", None if absent else norm(channels))


def make_tables(module: nn.Module, size: int, stride_q: int, stride_kv: int, dim: int, frames: int | None = None):
    rows = 2 * max(size // stride_q, size // stride_kv) - 1
    module.rel_pos_h = nn.Parameter(0.02 * torch.randn(rows, dim))
    module.rel_pos_w = nn.Parameter(0.02 * torch.randn(rows, dim))
    if frames is not None:
        module.rel_pos_t = nn.Parameter(0.02 * torch.randn(2 * frames - 1, dim))
