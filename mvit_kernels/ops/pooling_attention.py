"""`pooling_attention`: attention over pooled tokens with relative position and residual pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends import select
from ..op_arguments import grid3
from ..problem import RESIDUALS, AttentionProblem
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
    "pooling_attention(Tensor q, Tensor k, Tensor v, Tensor? rel_pos, SymInt[] grid_k, float scale, bool has_cls, "
    "str residual, bool tf32=False) -> (Tensor, Tensor)"
)
define(
    "pooling_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor? rel_pos, "
    "Tensor lse, SymInt[] grid_k, float scale, bool has_cls, str residual, bool[] needs, bool tf32=False) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)


_NOT_TENSORS = (None,) * 5
"""In place of gradients, for the arguments from grid_k on."""


def pooling_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rel_pos: Tensor | None = None,
    grid_k: Sequence[int] | None = None,
    scale: float | None = None,
    has_cls: bool = False,
    residual: str = "none",
) -> Tensor:
    """Attention over pooled tokens with MViTv2's decomposed relative position and residual pooling.

        out = softmax(scale * q k^T + bias) v  (+ q)          MViT eq. 2; MViTv2 eq. 3-4
        bias[i, (t, h, w)] = rel_pos[i, t] + rel_pos[i, Kt + h] + rel_pos[i, Kt + Kh + w]

    Args:
        q: (B, H, Nq, D). Pooled queries, unscaled; q, k and v may have any strides with a unit last one.
        k, v: (B, H, Nk, D), Nk = has_cls + Kt*Kh*Kw where rel_pos is given.
        rel_pos: (B, H, Nq, Kt+Kh+Kw) float32 from :func:`decomposed_rel_pos`; the cls row and column get no bias.
        grid_k: (Kt, Kh, Kw), needed with rel_pos and not looked at without.
        scale: factor on q k^T, D**-0.5 if None.
        residual: "none", "all", or "no_cls" (SlowFast and torchvision leave the cls row out; timm and PyTorchVideo add
            to it too).
    Returns:
        (B, Nq, H, D), dtype of q: `out.flatten(2)` is what the output projection takes.
    Raises:
        ValueError, TypeError: a shape, value or dtype that does not fit, named with what would.
        UnsupportedError: the backend asked for can't run this problem; lists its reasons.
    """
    op = "pooling_attention"
    checks.tensor(op, "q", q, 4, "(B, H, Nq, D)")
    check_keys(op, ("q", q), k, v)
    batch, heads, num_q, dim = q.shape
    num_k = k.shape[2]
    if has_cls and num_q < 1:
        raise ValueError(f"{op}: q has 0 tokens, at least the cls token is right with has_cls")
    scale = check_options(op, residual, scale, dim)
    grid = None
    if rel_pos is not None:
        checks.tensor(op, "rel_pos", rel_pos, 4, "(B, H, Nq, Kt+Kh+Kw)")
        if grid_k is None:
            raise ValueError(f"{op}: grid_k is None, the key grid (Kt, Kh, Kw) is right with rel_pos")
        grid = checks.grid(op, "grid_k", grid_k)
        checks.token_count(op, "k", k, 2, grid, has_cls, "grid_k")
        if tuple(rel_pos.shape) != (batch, heads, num_q, sum(grid)):
            raise ValueError(
                f"{op}: rel_pos has shape {tuple(rel_pos.shape)}, {(batch, heads, num_q, sum(grid))} is right"
            )
        rows_dtype = torch.promote_types(q.dtype, torch.float32)
        if rel_pos.dtype != rows_dtype:
            raise TypeError(f"{op}: rel_pos has dtype {rel_pos.dtype}, {rows_dtype} is right")
        rel_pos = checks.unit_last_stride(rel_pos)
    checks.same_device(op, ("q", q), ("k", k), ("v", v), ("rel_pos", rel_pos))
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (q, k, v, rel_pos))
    problem = AttentionProblem(
        *(q.device.type, q.dtype, batch, heads, dim, num_q, num_k, rel_pos is not None, has_cls, residual, needs_grad),
        rel_pos_entries=0 if grid is None else sum(grid),
    )
    q, k, v = checks.unit_last_stride(q), checks.unit_last_stride(k), checks.unit_last_stride(v)
    out, _ = select(problem).pooling_attention(
        q, k, v, rel_pos=rel_pos, grid_k=grid, scale=scale, has_cls=has_cls, residual=residual
    )
    return out


def check_keys(op: str, queries: tuple[str, Tensor], k: Tensor, v: Tensor) -> None:
    """k and v (B, H, Nk, D) agree with the queries (B, H, N, D), given with their name, in all but the tokens."""
    name_q, q = queries
    for name, x in (("k", k), ("v", v)):
        checks.tensor(op, name, x, 4, "(B, H, Nk, D)")
        if x.dtype != q.dtype:
            raise TypeError(f"{op}: {name} has dtype {x.dtype}, {q.dtype} like {name_q} is right")
    shape = (q.shape[0], q.shape[1], k.shape[2], q.shape[3])
    for name, x in (("k", k), ("v", v)):
        if tuple(x.shape) != shape:
            raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, {shape} is right")
    if k.shape[2] < 1:
        raise ValueError(f"{op}: k has {k.shape[2]} tokens, at least one is right")


def check_options(op: str, residual: str, scale: float | None, dim: int) -> float:
    """The scale, that of the head dim for None."""
    if residual not in RESIDUALS:
        raise ValueError(f"{op}: residual is {residual!r}, one of {', '.join(RESIDUALS)} is right")
    scale = dim**-0.5 if scale is None else float(scale)
    if not -math.inf < scale < math.inf:  # a symbolic float can't go into math.isfinite
        raise ValueError(f"{op}: scale is {scale}, a finite number is right")
    return scale


@register_fake("pooling_attention")
def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_pos: Tensor | None,
    grid_k: Sequence[int],
    scale: float,
    has_cls: bool,
    residual: str,
    tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    batch, heads, num_q, dim = q.shape
    out = q.new_empty(batch, num_q, heads, dim)
    return out, q.new_empty(batch, heads, num_q, dtype=torch.promote_types(q.dtype, torch.float32))


@register_fake("pooling_attention_backward")
def _fake_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_pos: Tensor | None,
    lse: Tensor,
    grid_k: Sequence[int],
    scale: float,
    has_cls: bool,
    residual: str,
    needs: Sequence[bool],
    tf32: bool = False,
) -> tuple[Tensor, ...]:
    """Gradients of q, k, v and rel_pos, contiguous; without elements where not needed."""
    return tuple(
        q.new_empty(0) if x is None or not needed else x.new_empty(x.shape)
        for x, needed in zip((q, k, v, rel_pos), needs, strict=True)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, rel_pos, grid_k, scale, has_cls, residual, tf32 = inputs
    ctx.save_for_backward(q, k, v, rel_pos, output[1])
    ctx.set_materialize_grads(False)
    ctx.grid_k, ctx.scale, ctx.has_cls, ctx.residual = grid3(grid_k), scale, has_cls, residual
    ctx.tf32 = tf32


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    *inputs, lse = ctx.saved_tensors
    if torch.is_grad_enabled():
        return *_differentiable_gradients(ctx, inputs, grad_out, grad_lse), *_NOT_TENSORS
    q, k, v, rel_pos = inputs
    if grad_out is None:
        grad_out = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], q.shape[3])
    needs = ctx.needs_input_grad[:4]
    gradients = ctx.ops.pooling_attention_backward(
        grad_out, grad_lse, q, k, v, rel_pos, lse, ctx.grid_k, ctx.scale, ctx.has_cls, ctx.residual, needs, ctx.tf32
    )
    return *present(gradients, needs), *_NOT_TENSORS


def _differentiable_gradients(
    ctx: Any, inputs: list[Tensor | None], grad_out: Tensor | None, grad_lse: Tensor | None
) -> list[Tensor | None]:
    def forward(q: Tensor, k: Tensor, v: Tensor, rel_pos: Tensor | None) -> tuple[Tensor, Tensor]:
        return reference.pooling_attention(
            q,
            k,
            v,
            rel_pos=rel_pos,
            grid_k=ctx.grid_k,
            scale=ctx.scale,
            has_cls=ctx.has_cls,
            residual=ctx.residual,
        )

    return recomputed_gradients(forward, inputs, [grad_out, grad_lse])


register_autograd("pooling_attention", _backward, _setup_context)
register_not_differentiable("pooling_attention")
