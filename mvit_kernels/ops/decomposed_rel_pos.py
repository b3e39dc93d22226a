"""`decomposed_rel_pos`: per query its inner products with the T, H and W relative-position tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends import select
from ..op_arguments import grid3
from ..problem import RelPosProblem
from . import checks
from .contract import (
    define,
    present,
    recomputed_gradients,
    register_autograd,
    register_fake,
    register_not_differentiable,
)

define(
    "decomposed_rel_pos(Tensor q, SymInt[] grid_q, SymInt[] grid_k, bool has_cls, "
    "Tensor? table_t, Tensor? table_h, Tensor? table_w) -> Tensor"
)
define(
    "decomposed_rel_pos_backward(Tensor grad, Tensor q, SymInt[] grid_q, SymInt[] grid_k, bool has_cls, "
    "Tensor? table_t, Tensor? table_h, Tensor? table_w, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)"
)


def decomposed_rel_pos(
    q: Tensor,
    grid_q: Sequence[int],
    grid_k: Sequence[int],
    *,
    has_cls: bool = False,
    table_t: Tensor | None = None,
    table_h: Tensor | None = None,
    table_w: Tensor | None = None,
) -> Tensor:
    """The bias of MViTv2's decomposed relative position, kept as its terms (MViTv2 equation 4).

        rows[i, :] = [<q_i, table_t[t_i, :]> | <q_i, table_h[h_i, :]> | <q_i, table_w[w_i, :]>]

    A few dozen numbers per query; :func:`pooling_attention` sums them per key.

    Args:
        q: (B, H, Nq, D), Nq = has_cls + tokens(grid_q); unscaled, any strides with a unit last one.
        grid_q, grid_k: grids (Qt, Qh, Qw) and (Kt, Kh, Kw) of the pooled queries and keys.
        table_t, table_h, table_w: gathered tables (Qt, Kt, D), (Qh, Kh, D), (Qw, Kw, D); an absent axis gives zeros.
    Returns:
        (B, H, Nq, Kt+Kh+Kw), float32 (float64 for float64 q). The row of the cls query is zero.
    Raises:
        ValueError, TypeError: a shape, value or dtype that does not fit, named with what would.
        UnsupportedError: the backend asked for can't run this problem; lists its reasons.
    """
    op = "decomposed_rel_pos"
    checks.tensor(op, "q", q, 4, "(B, H, Nq, D)")
    queries, keys = checks.grid(op, "grid_q", grid_q), checks.grid(op, "grid_k", grid_k)
    checks.token_count(op, "q", q, 2, queries, has_cls, "grid_q")
    for axis, table in enumerate((table_t, table_h, table_w)):
        checks.table(op, axis, table, q, queries, keys)
    checks.same_device(op, ("q", q), ("table_t", table_t), ("table_h", table_h), ("table_w", table_w))
    needs_grad = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (q, table_t, table_h, table_w)
    )
    batch, heads, _, dim = q.shape
    problem = RelPosProblem(q.device.type, q.dtype, batch, heads, dim, queries, keys, has_cls, needs_grad)
    return select(problem).decomposed_rel_pos(
        checks.unit_last_stride(q),
        queries,
        keys,
        has_cls=has_cls,
        table_t=table_t,
        table_h=table_h,
        table_w=table_w,
    )


@register_fake("decomposed_rel_pos")
def _fake(
    q: Tensor,
    grid_q: Sequence[int],
    grid_k: Sequence[int],
    has_cls: bool,
    table_t: Tensor | None,
    table_h: Tensor | None,
    table_w: Tensor | None,
) -> Tensor:
    return q.new_empty(*q.shape[:3], sum(grid_k), dtype=torch.promote_types(q.dtype, torch.float32))


@register_fake("decomposed_rel_pos_backward")
def _fake_backward(
    grad: Tensor,
    q: Tensor,
    grid_q: Sequence[int],
    grid_k: Sequence[int],
    has_cls: bool,
    table_t: Tensor | None,
    table_h: Tensor | None,
    table_w: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of q and the tables, contiguous; without elements where not needed."""
    return tuple(
        q.new_empty(0) if x is None or not needed else x.new_empty(x.shape)
        for x, needed in zip((q, table_t, table_h, table_w), needs, strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, grid_q, grid_k, has_cls, *tables = inputs
    ctx.save_for_backward(q, *tables)
    ctx.grid_q, ctx.grid_k, ctx.has_cls = grid3(grid_q), grid3(grid_k), has_cls


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    q_needs, *_, t_needs, h_needs, w_needs = ctx.needs_input_grad
    if torch.is_grad_enabled():
        q, t, h, w = _differentiable_gradients(ctx, grad)
    else:
        needs = [q_needs, t_needs, h_needs, w_needs]
        tokens, *tables = ctx.saved_tensors
        gradients = ctx.ops.decomposed_rel_pos_backward(
            grad, tokens, ctx.grid_q, ctx.grid_k, ctx.has_cls, *tables, needs
        )
        q, t, h, w = present(gradients, needs)
    return q, None, None, None, t, h, w


def _differentiable_gradients(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    def forward(q: Tensor, t: Tensor | None, h: Tensor | None, w: Tensor | None) -> Tensor:
        return reference.decomposed_rel_pos(
            q, ctx.grid_q, ctx.grid_k, has_cls=ctx.has_cls, table_t=t, table_h=h, table_w=w
        )

    return recomputed_gradients(forward, ctx.saved_tensors, [grad])


register_autograd("decomposed_rel_pos", _backward, _setup_context)
register_not_differentiable("decomposed_rel_pos")
