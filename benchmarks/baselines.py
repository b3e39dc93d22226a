"""What users run today: the layer as upstream writes it, with an explicit softmax or with PyTorch's fused attention.

The steps and their order are those of SlowFast's and torchvision's attention modules; so is the memory they take: the
relative-position bias is a matrix of the scores' size, added in place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mvit_kernels.description import MHPA, Fused, PoolNorm
from mvit_kernels.problem import Grid
from mvit_kernels.reference.pooling_attention import expand_rel_pos
from mvit_kernels.rel_pos_tables import gather_table

Attend = Callable[[Tensor, Tensor, Tensor, float, "Tensor | None", int], Tensor]
"""q, k, v (B, H, N, D), scale, bias (B, H, tokens of grid_q, tokens of grid_k) or None, number of cls tokens."""


def explicit(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, cls: int) -> Tensor:
    """matmul, softmax, matmul."""
    scores = (scale * q) @ k.transpose(-1, -2)
    if bias is not None:
        scores[:, :, cls:, cls:] += bias
    return scores.softmax(-1) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, cls: int) -> Tensor:
    """torch.nn.functional.scaled_dot_product_attention, the bias as its mask."""
    mask = None if bias is None else F.pad(bias, (cls, 0, cls, 0))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def forward(layer: MHPA, x: Tensor, thw: Grid, attend: Attend) -> Tensor:
    """(B, N, C) -> (B, Nq, A), for layers that pool after the projections, as all published ones do."""
    assert not layer.pool_first
    cls = int(layer.has_cls)
    q, k, v = _project(layer, x)
    q, grid_q = _pool(q, layer.pool_q, thw, cls)
    k, grid_k = _pool(k, layer.pool_k, thw, cls)
    v, _ = _pool(v, layer.pool_v, thw, cls)
    out = attend(q, k, v, layer.scale, _rel_pos_bias(layer, q[:, :, cls:], grid_q, grid_k), cls)
    if layer.residual == "all":
        out = out + q
    elif layer.residual == "no_cls":
        out[:, :, cls:] += q[:, :, cls:]
    return layer.out(out.transpose(1, 2).flatten(2))


def _project(layer: MHPA, x: Tensor) -> tuple[Tensor, ...]:
    if isinstance(layer.qkv, Fused):
        return layer.qkv.linear(x).unflatten(2, (3, layer.heads, -1)).transpose(1, 3).unbind(2)
    linears = (layer.qkv.q, layer.qkv.k, layer.qkv.v)
    return tuple(linear(x).unflatten(2, (layer.heads, -1)).transpose(1, 2) for linear in linears)


def _pool(x: Tensor, branch: PoolNorm | None, thw: Grid, cls: int) -> tuple[Tensor, Grid]:
    if branch is None:
        return x, thw
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


def _rel_pos_bias(layer: MHPA, q: Tensor, grid_q: Grid, grid_k: Grid) -> Tensor | None:
    """(B, H, tokens(grid_q), tokens(grid_k)), or None without relative position."""
    if layer.rel_pos is None:
        return None
    rel, grid = layer.rel_pos, q.unflatten(2, grid_q)
    parts = [
        grid.new_zeros(*grid.shape[:-1], keys)
        if table is None
        else torch.einsum(formula, grid, gather_table(table, queries, keys, rel.index))
        for formula, table, queries, keys in zip(
            ("bnthwd,tkd->bnthwk", "bnthwd,hkd->bnthwk", "bnthwd,wkd->bnthwk"),
            (rel.t, rel.h, rel.w),
            grid_q,
            grid_k,
            strict=True,
        )
    ]
    return expand_rel_pos(torch.cat(parts, dim=-1).flatten(2, 4), grid_k)
