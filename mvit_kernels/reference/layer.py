"""The whole layer: MViT (arXiv 2104.11227) section 3.1, MViTv2 (arXiv 2112.01526) section 4.1, step by step."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from .. import windows
from ..description import MHPA, Fused, HostPool, PoolNorm
from ..problem import Grid
from ..rel_pos_tables import gather_table
from .decomposed_rel_pos import decomposed_rel_pos
from .pool3d_norm import pool3d_norm
from .pooling_attention import pooling_attention


def multi_head_pooling_attention(layer: MHPA, x: Tensor, thw: Grid) -> tuple[Tensor, Grid]:
    """Project, pool, attend, add the pooled q, project.

    Args:
        x: (B, has_cls + T*H*W, C).
    Returns:
        (B, has_cls + tokens of the pooled q grid, A) and that grid.
    """
    if layer.pool_first:
        folded = split_heads(x, layer.pool_heads)
        pooled = [pool_branch(folded, branch, thw, layer.has_cls) for branch in layer.pools]
        projected = [project(layer, merge_heads(tokens), i) for i, (tokens, _) in enumerate(pooled)]
        q, k, v = (split_heads(tokens, layer.heads) for tokens in projected)
        grid_q, grid_k = pooled[0][1], pooled[1][1]
    else:
        q, k, v = (split_heads(project(layer, x, i), layer.heads) for i in range(3))
        q, grid_q = pool_branch(q, layer.pool_q, thw, layer.has_cls)
        k, grid_k = pool_branch(k, layer.pool_k, thw, layer.has_cls)
        v, _ = pool_branch(v, layer.pool_v, thw, layer.has_cls)

    if layer.windows is None:
        return layer.out(attend(layer, q, k, v, grid_q, grid_k).flatten(2)), grid_q
    (win_q, win_k), (size_q, size_k) = windows.partitions("mhpa", layer.windows, grid_q, grid_k)
    inside = replace(layer, residual="none")
    cut_q = windows.partition(q, grid_q, size_q)
    cut_k, cut_v = (windows.partition(x, grid_k, size_k) for x in (k, v))
    out = windows.merge(attend(inside, cut_q, cut_k, cut_v, win_q, win_k), grid_q, size_q)
    if layer.residual != "none":
        out = out + q.transpose(1, 2)
    return layer.out(out.flatten(2)), grid_q


def attend(layer: MHPA, q: Tensor, k: Tensor, v: Tensor, grid_q: Grid, grid_k: Grid) -> Tensor:
    """Pooled q, k, v (B, H, N, D) -> (B, Nq, H, D)."""
    rows = None
    if layer.rel_pos is not None:
        rel = layer.rel_pos
        tables = [
            None if table is None else gather_table(table, num_q, num_k, rel.index, axis in rel.resized)
            for axis, table, num_q, num_k in zip("thw", (rel.t, rel.h, rel.w), grid_q, grid_k, strict=True)
        ]
        rows = decomposed_rel_pos(
            q, grid_q, grid_k, has_cls=layer.has_cls, table_t=tables[0], table_h=tables[1], table_w=tables[2]
        )
    out, _ = pooling_attention(
        q, k, v, rel_pos=rows, grid_k=grid_k, scale=layer.scale, has_cls=layer.has_cls, residual=layer.residual
    )
    return out


def project(layer: MHPA, x: Tensor, branch: int) -> Tensor:
    """(B, N, C) -> (B, N, A): branch 0 is q, 1 is k, 2 is v."""
    if isinstance(layer.qkv, Fused):
        linear = layer.qkv.linear
        bias = None if linear.bias is None else linear.bias.chunk(3)[branch]
        return F.linear(x, linear.weight.chunk(3)[branch], bias)
    linear = (layer.qkv.q, layer.qkv.k, layer.qkv.v)[branch]
    return F.linear(x, linear.weight, linear.bias)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, H*D) -> (B, H, N, D)."""
    return x.unflatten(2, (heads, x.shape[2] // heads)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, N, D) -> (B, N, H*D)."""
    return x.transpose(1, 2).flatten(2)


def pool_branch(x: Tensor, branch: PoolNorm | HostPool | None, thw: Grid, has_cls: bool) -> tuple[Tensor, Grid]:
    """Pool one branch; without a pool it keeps its tokens, its grid and its scale."""
    if branch is None:
        return x, thw
    if isinstance(branch, HostPool):
        return branch.call(x, thw)
    y = pool3d_norm(
        x,
        thw,
        branch.pool,
        has_cls=has_cls,
        weight=branch.weight,
        norm_weight=branch.norm_weight,
        norm_bias=branch.norm_bias,
        norm_eps=branch.norm_eps,
    )
    return y, branch.pool.out_grid(thw)
