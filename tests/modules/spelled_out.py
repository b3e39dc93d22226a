"""SlowFast's attention and block step by step, calling the sub-modules and forming every matrix, on PyTorch alone."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_kernels.modules import MultiHeadPoolingAttention, MultiScaleBlock

Grid = tuple[int, ...]


def randomize(module: nn.Module, std: float = 0.4, seed: int = 0) -> nn.Module:
    """Parameters large enough that softmax is far from uniform and every bias matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return module


def attention(layer: MultiHeadPoolingAttention, x: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
    cls, heads = int(layer.has_cls_embed), layer.num_heads
    separate = layer.pool_first or layer.separate_qkv
    pools = ((layer.pool_q, layer.norm_q), (layer.pool_k, layer.norm_k), (layer.pool_v, layer.norm_v))
    project = (
        (layer.q, layer.k, layer.v) if separate else [lambda y, i=i: layer.qkv(y).chunk(3, -1)[i] for i in range(3)]
    )
    qkv, grids = [], []
    for (pool, norm), linear in zip(pools, project, strict=True):
        if layer.pool_first:
            fold = 1 if layer.mode == "conv_unshared" else heads
            y, grid = pool_tokens(split(x, fold), pool, norm, thw, cls)
            y = split(linear(merge(y)), heads)
        else:
            y, grid = pool_tokens(split(linear(x), heads), pool, norm, thw, cls)
        qkv.append(y)
        grids.append(grid)
    q, k, v = qkv
    scores = q @ k.transpose(-1, -2) * (layer.dim_out // heads) ** -0.5
    for name, axis in (("rel_pos_t", 0), ("rel_pos_h", 1), ("rel_pos_w", 2)):
        if hasattr(layer, name):
            bias = axis_bias(q[:, :, cls:], getattr(layer, name), grids[0], grids[1], axis)
            scores = scores + F.pad(bias, (cls, 0, cls, 0))
    out = scores.softmax(-1) @ v
    if layer.residual_pooling:
        first = 0 if layer.residual == "all" else cls
        out = torch.cat((out[:, :, :first], out[:, :, first:] + q[:, :, first:]), dim=2)
    return layer.proj(merge(out)), grids[0]


def block(layer: MultiScaleBlock, x: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
    normed = layer.norm1(x)
    attended, grid = attention(layer.attn, normed, thw)
    skip = layer.proj(normed) if layer.dim_mul_in_att and layer.dim != layer.dim_out else x
    skip = pool_tokens(skip[:, None], layer.pool_skip, None, thw, int(layer.has_cls_embed))[0][:, 0]
    x = skip + (attended if layer.gamma_1 is None else layer.gamma_1 * attended)
    normed = layer.norm2(x)
    mlp = layer.mlp.fc2(F.gelu(layer.mlp.fc1(normed)))
    skip = layer.proj(normed) if not layer.dim_mul_in_att and layer.dim != layer.dim_out else x
    return skip + (mlp if layer.gamma_2 is None else layer.gamma_2 * mlp), grid


def pool_tokens(x: Tensor, pool: nn.Module | None, norm: nn.Module | None, thw: Grid, cls: int) -> tuple[Tensor, Grid]:
    """(B, H, N, D) through a pooling module that knows (N, C, T, H, W); the cls token only through the norm."""
    if pool is None:
        return x, thw
    batch, heads, _, dim = x.shape
    y = pool(x[:, :, cls:].transpose(2, 3).reshape(batch * heads, dim, *thw))
    tokens = torch.cat((x[:, :, :cls], y.reshape(batch, heads, dim, -1).transpose(2, 3)), dim=2)
    return tokens if norm is None else norm(tokens), tuple(y.shape[2:])


def axis_bias(q: Tensor, table: Tensor, grid_q: Grid, grid_k: Grid, axis: int) -> Tensor:
    """(B, H, Nq, Nk) of <q_i, table[row(i, j)]>, row by formula A for one (query, key) pair after another."""
    num_q, num_k = grid_q[axis], grid_k[axis]
    ratio_q, ratio_k = max(num_k / num_q, 1.0), max(num_q / num_k, 1.0)
    at_q, at_k = ([cell[axis] for cell in product(*map(range, grid))] for grid in (grid_q, grid_k))
    rows = torch.tensor([[int(i * ratio_q - j * ratio_k + (num_k - 1) * ratio_k) for j in at_k] for i in at_q])
    needed = 2 * max(num_q, num_k) - 1
    if len(table) != needed:
        table = F.interpolate(table.T[None], size=needed, mode="linear")[0].T
    return torch.einsum("bhqd,qkd->bhqk", q, table[rows])


def split(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
