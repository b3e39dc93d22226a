"""What users run today: the layer and the block as upstream writes them, with several ways to attend.

The steps and their order are those of SlowFast's and torchvision's attention modules; so is the memory they take: the
relative-position bias is a matrix of the scores' size, added in place. For configurations whose library is not on the
package index; where it is (hosts.py), its own code is the baseline.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvit_kernels.description import MHPA, Fused, PoolNorm
from mvit_kernels.modules import MultiHeadPoolingAttention, MultiScaleBlock
from mvit_kernels.problem import Grid
from mvit_kernels.reference.pooling_attention import expand_rel_pos
from mvit_kernels.rel_pos_tables import gather_table

Attend = Callable[[Tensor, Tensor, Tensor, float, "Tensor | None", Grid, int], Tensor]
"""q, k, v (B, H, N, D), scale, rel-pos rows (B, H, tokens(grid_q), Kt+Kh+Kw) or None, grid_k, number of cls tokens."""


def explicit(q: Tensor, k: Tensor, v: Tensor, scale: float, rows: Tensor | None, grid_k: Grid, cls: int) -> Tensor:
    """matmul, softmax, matmul."""
    scores = (scale * q) @ k.transpose(-1, -2)
    if rows is not None:
        scores[:, :, cls:, cls:] += expand_rel_pos(rows, grid_k)
    return scores.softmax(-1) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, rows: Tensor | None, grid_k: Grid, cls: int) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention, the bias as its mask."""
    mask = None if rows is None else F.pad(expand_rel_pos(rows, grid_k), (cls, 0, cls, 0))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def flex(q: Tensor, k: Tensor, v: Tensor, scale: float, rows: Tensor | None, grid_k: Grid, cls: int) -> Tensor:
    """FlexAttention, compiled, the relative position as its score_mod: three entries of a row per score."""
    if not torch.is_grad_enabled():  # or it refuses leaves on a CPU, where it has no backward
        q, k, v = q.detach(), k.detach(), v.detach()
        rows = None if rows is None else rows.detach()
    if rows is None:
        return _compiled_flex()(q, k, v, scale=scale)
    _, height, width = grid_k
    frames = grid_k[0]
    rows = F.pad(rows, (0, 0, cls, 0))

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        key = torch.where(j >= cls, j - cls, 0)
        t, y, x = key // (height * width), key // width % height, key % width
        bias = rows[b, h, i, t] + rows[b, h, i, frames + y] + rows[b, h, i, frames + height + x]
        return torch.where((i >= cls) & (j >= cls), score + bias, score)

    return _compiled_flex()(q, k, v, score_mod=score_mod, scale=scale)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    return compiled


ATTEND: dict[str, Attend] = {"eager": explicit, "sdpa": sdpa, "flex": flex}


class HostAttention(nn.Module):
    """The parameters of an attention module of this package, run as upstream runs them."""

    def __init__(self, own: MultiHeadPoolingAttention, attend: Attend) -> None:
        super().__init__()
        self.own, self.attend = own, attend

    def forward(self, x: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
        return attention(self.own.describe(), x, thw, self.attend)


class HostBlock(nn.Module):
    """The parameters of a block of this package, run as SlowFast's MultiScaleBlock runs them; no stochastic depth."""

    def __init__(self, own: MultiScaleBlock, attend: Attend = explicit) -> None:
        super().__init__()
        self.own, self.attn = own, HostAttention(own.attn, attend)

    def forward(self, x: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
        own = self.own
        changes, cls = own.dim != own.dim_out, int(own.has_cls_embed)
        normed = own.norm1(x)
        attended, grid = self.attn(normed, thw)
        skip = own.proj(normed) if changes and own.dim_mul_in_att else x
        if own.pool_skip is not None:
            pool: Any = own.pool_skip
            maps = skip[:, cls:].transpose(1, 2).unflatten(2, thw)
            pooled = F.max_pool3d(maps, pool.kernel_size, pool.stride, pool.padding).flatten(2).transpose(1, 2)
            skip = torch.cat((skip[:, :cls], pooled), dim=1)
        x = skip + attended
        normed = own.norm2(x)
        skip = own.proj(normed) if changes and not own.dim_mul_in_att else x
        return skip + own.mlp(normed), grid


def attention(layer: MHPA, x: Tensor, thw: Grid, attend: Attend) -> tuple[Tensor, Grid]:
    """(B, N, C) -> (B, Nq, A) and its grid, for layers that pool after the projections, as all published ones do."""
    assert not layer.pool_first
    cls = int(layer.has_cls)
    q, k, v = _project(layer, x)
    q, grid_q = pool_tokens(q, layer.pool_q, thw, cls)
    k, grid_k = pool_tokens(k, layer.pool_k, thw, cls)
    v, _ = pool_tokens(v, layer.pool_v, thw, cls)
    rows = _rel_pos_rows(layer, q[:, :, cls:], grid_q, grid_k)
    out = add_residual(attend(q, k, v, layer.scale, rows, grid_k, cls), q, layer.residual, cls)
    return layer.out(out.transpose(1, 2).flatten(2)), grid_q


def add_residual(out: Tensor, q: Tensor, residual: str, cls: int) -> Tensor:
    """Residual pooling (MViTv2 equation 4)."""
    if residual == "all":
        return out + q
    if residual == "no_cls":
        out[:, :, cls:] += q[:, :, cls:]
    return out


def pool_tokens(x: Tensor, branch: Any, thw: Grid, cls: int) -> tuple[Tensor, Grid]:
    """(B, H, N, D) -> pooled and normalised (B, H, N', D), and its grid: copy, conv3d, cat, LayerNorm."""
    if branch is None:
        return x, thw
    assert isinstance(branch, PoolNorm)
    pool, (batch, heads, _, dim) = branch.pool, x.shape
    grid = x[:, :, cls:].transpose(2, 3).reshape(batch * heads, dim, *thw)
    if pool.mode == "conv":
        assert branch.weight is not None
        grid = F.conv3d(grid, branch.weight, None, pool.stride, pool.padding, groups=dim)
    else:
        pooling = F.avg_pool3d if pool.mode == "avg" else F.max_pool3d
        grid = pooling(grid, pool.kernel, pool.stride, pool.padding)
    tokens = grid.reshape(batch, heads, dim, -1).transpose(2, 3)
    if cls:
        tokens = torch.cat((x[:, :, :1], tokens), dim=2)
    if branch.norm_eps is not None:
        tokens = F.layer_norm(tokens, (dim,), branch.norm_weight, branch.norm_bias, branch.norm_eps)
    return tokens, pool.out_grid(thw)


def rel_pos_rows(q: Tensor, tables: tuple[Tensor | None, ...], grid_q: Grid, grid_k: Grid) -> Tensor:
    """q (B, H, tokens(grid_q), D) and tables (Q, K, D) per axis -> (B, H, tokens(grid_q), Kt+Kh+Kw) by einsum."""
    grid = q.unflatten(2, grid_q)
    parts = [
        grid.new_zeros(*grid.shape[:-1], keys) if table is None else torch.einsum(formula, grid, table)
        for formula, table, keys in zip(
            ("bnthwd,tkd->bnthwk", "bnthwd,hkd->bnthwk", "bnthwd,wkd->bnthwk"), tables, grid_k, strict=True
        )
    ]
    return torch.cat(parts, dim=-1).flatten(2, 4)


def _project(layer: MHPA, x: Tensor) -> tuple[Tensor, ...]:
    if isinstance(layer.qkv, Fused):
        return layer.qkv.linear(x).unflatten(2, (3, layer.heads, -1)).transpose(1, 3).unbind(2)
    linears = (layer.qkv.q, layer.qkv.k, layer.qkv.v)
    return tuple(linear(x).unflatten(2, (layer.heads, -1)).transpose(1, 2) for linear in linears)


def _rel_pos_rows(layer: MHPA, q: Tensor, grid_q: Grid, grid_k: Grid) -> Tensor | None:
    if layer.rel_pos is None:
        return None
    rel = layer.rel_pos
    tables = tuple(
        None if table is None else gather_table(table, queries, keys, rel.index)
        for table, queries, keys in zip((rel.t, rel.h, rel.w), grid_q, grid_k, strict=True)
    )
    return rel_pos_rows(q, tables, grid_q, grid_k)
