"""`pooled_query_attention`: attention that pools its queries, for inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..backends import select
from ..op_arguments import grid3
from ..problem import AttentionProblem, Pool, PooledQueryProblem, tokens
from . import checks
from .contract import define, register_autograd, register_fake
from .pool3d_norm import check_branch
from .pooling_attention import check_keys, check_options

define(
    "pooled_query_attention(Tensor x, SymInt[] thw, Tensor k, Tensor v, bool has_cls, str mode, int[] kernel, "
    "int[] stride, int[] padding, Tensor? weight, Tensor? norm_weight, Tensor? norm_bias, float? norm_eps, "
    "Tensor? table_t, Tensor? table_h, Tensor? table_w, SymInt[] grid_k, float scale, str residual) -> Tensor"
)


def pooled_query_attention(
    x: Tensor,
    thw: Sequence[int],
    pool: Pool,
    k: Tensor,
    v: Tensor,
    *,
    has_cls: bool = False,
    weight: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float | None = None,
    table_t: Tensor | None = None,
    table_h: Tensor | None = None,
    table_w: Tensor | None = None,
    grid_k: Sequence[int] | None = None,
    scale: float | None = None,
    residual: str = "none",
) -> Tensor:
    """What :func:`pool3d_norm`, :func:`decomposed_rel_pos` and :func:`pooling_attention` give one after the other.

        q = LayerNorm(P(x));  out = softmax(scale * q k^T + bias(q)) v  (+ q)

    For inference: pooled q and its rows of relative position need never be in memory. The cuda backend has a kernel;
    with gradients, and on backends without one, the reference runs.

    Args:
        x: (B, H, N, D), N = has_cls + T*H*W: the queries before their pooling, any strides with a unit last one.
        thw, pool, weight, norm_weight, norm_bias, norm_eps: the queries' pooling, as in :func:`pool3d_norm`.
        k, v: (B, H, Nk, D), pooled, as in :func:`pooling_attention`.
        table_t, table_h, table_w: gathered tables as in :func:`decomposed_rel_pos`, for the grids of pooled q and
            `grid_k`; none at all: no relative position.
        grid_k: (Kt, Kh, Kw), needed with a table and not looked at without.
        scale, residual: as in :func:`pooling_attention`.
    Returns:
        (B, has_cls + tokens(pool.out_grid(thw)), H, D), dtype of x.
    Raises:
        ValueError, TypeError: a shape, value or dtype that does not fit, named with what would.
        UnsupportedError: the backend asked for can't run this problem; lists its reasons.
    """
    op = "pooled_query_attention"
    x, grid, pooling = check_branch(op, x, thw, pool, has_cls, weight, norm_weight, norm_bias, norm_eps)
    check_keys(op, ("x", x), k, v)
    scale = check_options(op, residual, scale, x.shape[3])
    tables = (table_t, table_h, table_w)
    has_rel_pos = any(table is not None for table in tables)
    grid_q, keys = pool.out_grid(grid), None
    if has_rel_pos:
        if grid_k is None:
            raise ValueError(f"{op}: grid_k is None, the key grid (Kt, Kh, Kw) is right with a table")
        keys = checks.grid(op, "grid_k", grid_k)
        checks.token_count(op, "k", k, 2, keys, has_cls, "grid_k")
        for axis, table in enumerate(tables):
            checks.table(op, axis, table, x, grid_q, keys)
    named = zip(("k", "v", "table_t", "table_h", "table_w"), (k, v, *tables), strict=True)
    checks.same_device(op, ("x", x), *named)
    needs_grad = torch.is_grad_enabled() and (
        pooling.needs_grad or any(t is not None and t.requires_grad for t in (k, v, *tables))
    )
    batch, heads, _, dim = x.shape
    num_q = int(has_cls) + tokens(grid_q)
    attention = AttentionProblem(
        *(pooling.device, pooling.dtype, batch, heads, dim, num_q, k.shape[2], has_rel_pos, has_cls, residual),
        needs_grad=needs_grad,
        rel_pos_entries=0 if keys is None else sum(keys),
    )
    return select(PooledQueryProblem(pooling, attention)).pooled_query_attention(
        x,
        grid,
        pool,
        checks.unit_last_stride(k),
        checks.unit_last_stride(v),
        has_cls=has_cls,
        weight=weight,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        norm_eps=norm_eps,
        table_t=table_t,
        table_h=table_h,
        table_w=table_w,
        grid_k=keys,
        scale=scale,
        residual=residual,
    )


@register_fake("pooled_query_attention")
def _fake(
    x: Tensor,
    thw: Sequence[int],
    k: Tensor,
    v: Tensor,
    has_cls: bool,
    mode: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    weight: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float | None,
    table_t: Tensor | None,
    table_h: Tensor | None,
    table_w: Tensor | None,
    grid_k: Sequence[int],
    scale: float,
    residual: str,
) -> Tensor:
    out_grid = Pool(mode, grid3(kernel), grid3(stride), grid3(padding)).out_grid(grid3(thw))
    return x.new_empty(x.shape[0], int(has_cls) + tokens(out_grid), x.shape[1], x.shape[3])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


def _backward(ctx: Any, grad: Tensor) -> NoReturn:
    raise RuntimeError(
        "pooled_query_attention is for inference: pool3d_norm, decomposed_rel_pos and pooling_attention have gradients"
    )


register_autograd("pooled_query_attention", _backward, _setup_context)
