"""The one forward of an MHPA layer, whoever owns its parameters.

Same numbers as :func:`mvit_kernels.reference.multi_head_pooling_attention`, in the order that saves work: k and v are
projected only where their pooling reads, the poolings of q, k and v are one call, and heads are merged by a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from . import ops, windows
from .description import MHPA, Fused, HostPool, PoolNorm, RelPos
from .ops import checks
from .problem import Grid, Pool, TouchedGrid, touched_grid
from .projection import compute_dtype, project
from .query_pooling import pool_of_attention
from .recompute import Recomputed, recomputed
from .rel_pos_tables import gather_table

NO_GRID: Grid = (0, 0, 0)


def forward(
    layer: MHPA, x: Tensor, thw: Sequence[int], *, residual: Tensor | None = None
) -> tuple[Tensor, Sequence[int]]:
    """Multi-Head Pooling Attention of `layer` (MViT section 3.1, MViTv2 section 4.1).

    Args:
        x: (B, has_cls + T*H*W, C) tokens, the cls token first.
        thw: the token grid (T, H, W). Not looked at where the layer neither pools nor has windows or relative position.
        residual: (B, has_cls + tokens of the pooled q grid, A), added to the layer's output: the block's skip path.
    Returns:
        (B, has_cls + tokens of the pooled q grid, A) and that grid; `thw` as it came where it was not looked at.
    Raises:
        ValueError, TypeError: a shape, value or dtype that does not fit, named with what would.
        UnsupportedError: the backend asked for can't run one of the ops; lists its reasons.
    """
    checks.tensor("mhpa", "x", x, 3, "(B, N, C)")
    grid = checks.grid("mhpa", "thw", thw) if layer.looks_at_grid else NO_GRID
    if layer.looks_at_grid:
        checks.token_count("mhpa", "x", x, 1, grid, layer.has_cls)

    again = recomputed(x, layer.qkv.parameters())
    project_and_pool = _pool_then_project if layer.pool_first else _project_then_pool
    pool_q = pool_of_attention(layer, x, grid)
    before = layer if pool_q is None else replace(layer, pool_q=None)
    (q, grid_q), (k, grid_k), (v, _) = project_and_pool(before, x, grid, again)
    with again.not_kept():
        if pool_q is not None:
            out, grid_q = _pool_q_and_attend(layer, pool_q, q, k, v, grid_q, grid_k)
        elif layer.windows is None:
            out = _attend(layer, q, k, v, grid_q, grid_k)
        else:
            # Padded queries are zero and cut off again, so that the residual inside the windows is the one outside.
            (win_q, win_k), (size_q, size_k) = windows.partitions("mhpa", layer.windows, grid_q, grid_k)
            q = windows.partition(q, grid_q, size_q)
            k, v = windows.partition(k, grid_k, size_k), windows.partition(v, grid_k, size_k)
            out = windows.merge(_attend(layer, q, k, v, win_q, win_k), grid_q, size_q)
    del q, k, v  # or they live through the projection, where the memory peaks
    return _project_out(layer, out.flatten(2), residual), grid_q if layer.looks_at_grid else thw


def _attend(layer: MHPA, q: Tensor, k: Tensor, v: Tensor, grid_q: Grid, grid_k: Grid) -> Tensor:
    """Pooled q, k, v (B, H, N, D) -> (B, Nq, H, D)."""
    rows = None
    if layer.rel_pos is not None:
        t, h, w = _tables(layer.rel_pos, grid_q, grid_k)
        rows = ops.decomposed_rel_pos(q, grid_q, grid_k, has_cls=layer.has_cls, table_t=t, table_h=h, table_w=w)
    return ops.pooling_attention(
        q, k, v, rel_pos=rows, grid_k=grid_k, scale=layer.scale, has_cls=layer.has_cls, residual=layer.residual
    )


def _pool_q_and_attend(
    layer: MHPA, branch: PoolNorm, q: Tensor, k: Tensor, v: Tensor, grid: Grid, grid_k: Grid
) -> tuple[Tensor, Grid]:
    """q (B, H, N, D) of `grid`, pooled k and v -> (B, Nq, H, D), and the grid of pooled q."""
    grid_q = branch.pool.out_grid(grid)
    t, h, w = (None, None, None) if layer.rel_pos is None else _tables(layer.rel_pos, grid_q, grid_k)
    out = ops.pooled_query_attention(
        *(q, grid, branch.pool, k, v),
        has_cls=layer.has_cls,
        weight=branch.weight,
        norm_weight=branch.norm_weight,
        norm_bias=branch.norm_bias,
        norm_eps=branch.norm_eps,
        table_t=t,
        table_h=h,
        table_w=w,
        grid_k=grid_k,
        scale=layer.scale,
        residual=layer.residual,
    )
    return out, grid_q


def _project_out(layer: MHPA, merged: Tensor, residual: Tensor | None) -> Tensor:
    if layer.out_linear is not None:
        return project(merged, layer.out_linear, residual=residual)
    out = layer.out(merged)
    return out if residual is None else residual + out


Pooled = list[tuple[Tensor, Grid]]
"""Pooled q, k and v (B, H, N, D), each with its grid."""


def _project_then_pool(layer: MHPA, x: Tensor, grid: Grid, again: Recomputed) -> Pooled:
    x = x.to(compute_dtype(x))
    touched, index, grids = None, None, [grid] * 3
    if layer.uses_touched_tokens:
        assert isinstance(layer.pool_k, PoolNorm)
        pool = layer.pool_k.pool
        touched = touched_grid(pool, grid)
        index = _token_index(touched, pool, grid, layer.has_cls, x.device)
        grids = [grid, touched.thw, touched.thw]
    projected = _project(layer, x, index, again)
    with again.not_kept():
        return _pool(projected, layer.pools, grids, touched, layer.has_cls)


def _pool_then_project(layer: MHPA, x: Tensor, grid: Grid, again: Recomputed) -> Pooled:
    folded = _split_heads(x, layer.pool_heads)
    pooled = _pool([folded] * 3, layer.pools, [grid] * 3, None, layer.has_cls)
    tokens = [y.transpose(1, 2).flatten(2) for y, _ in pooled]
    parts: list[tuple[Tensor, Tensor | None]]
    if isinstance(layer.qkv, Fused):
        biases = [None] * 3 if layer.qkv.linear.bias is None else layer.qkv.linear.bias.chunk(3)
        parts = list(zip(layer.qkv.linear.weight.chunk(3), biases, strict=True))
    else:
        parts = [(part.weight, part.bias) for part in (layer.qkv.q, layer.qkv.k, layer.qkv.v)]
    projected = [again.projection(y, weight, bias) for y, (weight, bias) in zip(tokens, parts, strict=True)]
    return [(_split_heads(y, layer.heads), grid_) for y, (_, grid_) in zip(projected, pooled, strict=True)]


def _project(layer: MHPA, x: Tensor, touched: Tensor | None, again: Recomputed) -> list[Tensor]:
    """q of all tokens, k and v of all or of the touched ones, each (B, H, N, D) as views of the projections."""
    if isinstance(layer.qkv, Fused):
        weight, bias = layer.qkv.linear.weight, layer.qkv.linear.bias
        if touched is None:
            return _unbind_heads(again.projection(x, weight, bias), 3, layer.heads)
        width = weight.shape[0] // 3
        bias_q, bias_kv = (None, None) if bias is None else (bias[:width], bias[width:])
        return [
            *_unbind_heads(again.projection(x, weight[:width], bias_q), 1, layer.heads),
            *_unbind_heads(again.projection(x, weight[width:], bias_kv, touched), 2, layer.heads),
        ]
    inputs = ((layer.qkv.q, None), (layer.qkv.k, touched), (layer.qkv.v, touched))
    return [_split_heads(again.projection(x, part.weight, part.bias, index), layer.heads) for part, index in inputs]


def _unbind_heads(x: Tensor, parts: int, heads: int) -> list[Tensor]:
    """(B, N, parts*H*D) -> parts times (B, H, N, D), views."""
    # Split before transposing: the backward then puts the three gradients next to each other in one pass.
    return [part.transpose(1, 2) for part in x.unflatten(2, (parts, heads, -1)).unbind(2)]


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, H*D) -> (B, H, N, D), a view."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _token_index(touched: TouchedGrid, pool: Pool, grid: Grid, has_cls: bool, device: torch.device) -> Tensor:
    """Token indices of a touched grid, t-major, the cls token first."""
    t, h, w = (
        _axis_index(len(rows), kernel, stride, padding, device)
        for rows, kernel, stride, padding in zip(touched.rows, pool.kernel, pool.stride, pool.padding, strict=True)
    )
    _, height, width = grid
    index = ((t[:, None, None] * height + h[:, None]) * width + w).flatten()
    return torch.cat((index.new_zeros(1), index + 1)) if has_cls else index


def _axis_index(rows: int, kernel: int, stride: int, padding: int, device: torch.device) -> Tensor:
    """One axis of `TouchedGrid.rows`, computed on the device: a copy from the host can't go into a CUDA graph."""
    if stride <= kernel:
        return torch.arange(rows, device=device)
    in_padding = next(i for i in range(padding + 1) if i // kernel * stride + i % kernel >= padding)
    i = torch.arange(in_padding, in_padding + rows, device=device)
    return i // kernel * stride + i % kernel - padding


def _pool(
    qkv: list[Tensor],
    branches: Sequence[PoolNorm | HostPool | None],
    grids: Sequence[Grid],
    touched: TouchedGrid | None,
    has_cls: bool,
) -> Pooled:
    """Pool the branches that have a pool, in one call; the others keep their tokens and grid.

    With `touched`, k and v (branches 1 and 2) come on its grid and are pooled with its strides.
    """
    pooled = list(zip(qkv, grids, strict=True))
    active = []
    for i, branch in enumerate(branches):
        if isinstance(branch, HostPool):
            pooled[i] = branch.call(*pooled[i])
        elif branch is not None:
            active.append((i, branch))
    if not active:
        return pooled
    pools = [branch.pool if touched is None or i == 0 else touched.pool for i, branch in active]
    outputs = ops.qkv_pool3d_norm(
        [qkv[i] for i, _ in active],
        [grids[i] for i, _ in active],
        pools,
        has_cls=has_cls,
        weight=[branch.weight for _, branch in active],
        norm_weight=[branch.norm_weight for _, branch in active],
        norm_bias=[branch.norm_bias for _, branch in active],
        norm_eps=[branch.norm_eps for _, branch in active],
    )
    for (i, _), pool, y in zip(active, pools, outputs, strict=True):
        pooled[i] = (y, pool.out_grid(grids[i]))
    return pooled


def _tables(rel_pos: RelPos, grid_q: Grid, grid_k: Grid) -> list[Tensor | None]:
    """Gathered tables (Qt, Kt, D), (Qh, Kh, D), (Qw, Kw, D); None for an axis without one."""
    return [
        None if table is None else gather_table(table, num_q, num_k, rel_pos.index, axis in rel_pos.resized)
        for axis, table, num_q, num_k in zip("thw", (rel_pos.t, rel_pos.h, rel_pos.w), grid_q, grid_k, strict=True)
    ]
