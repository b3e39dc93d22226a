"""`pool3d_norm`: the pooling operator of MViT and the LayerNorm behind it, for one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends import select
from ..op_arguments import grid3
from ..problem import Grid, Pool, PoolProblem, tokens
from . import checks
from .contract import define, recomputed_gradients, register_autograd, register_fake
from .pool_backward import pool_gradients

define(
    "pool3d_norm(Tensor x, SymInt[] thw, bool has_cls, str mode, int[] kernel, int[] stride, int[] padding, "
    "Tensor? weight, Tensor? norm_weight, Tensor? norm_bias, float? norm_eps) -> Tensor"
)


def pool3d_norm(
    x: Tensor,
    thw: Sequence[int],
    pool: Pool,
    *,
    has_cls: bool = False,
    weight: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float | None = None,
) -> Tensor:
    """Pool tokens over space-time, then normalise over the head dim (MViT section 3.1).

        y = P(x; kernel, stride, padding);  out = LayerNorm([x_cls, y])

    Args:
        x: (B, H, N, D), N = has_cls + T*H*W, the cls token first; any strides with a unit last one, so a slice of a
            fused (B, N, 3, H, D) projection goes in without a copy.
        thw: the token grid (T, H, W).
        pool: mode "conv", "avg" or "max" with kernel, stride and padding per axis. "avg" counts the padding in the
            mean, "max" pads with -inf.
        has_cls: token 0 is a cls token: it skips the pooling and gets the norm.
        weight: conv only: (D, 1, kt, kh, kw), shared by the heads, or (H*D, 1, kt, kh, kw).
        norm_weight, norm_bias: (D,) each, optional.
        norm_eps: LayerNorm's eps; None for no norm.
    Returns:
        (B, H, has_cls + tokens(pool.out_grid(thw)), D) contiguous, dtype of x.
    Raises:
        ValueError, TypeError: a shape, value or dtype that does not fit, named with what would.
        UnsupportedError: the backend asked for can't run this problem; lists its reasons.
    """
    x, grid, problem = check_branch("pool3d_norm", x, thw, pool, has_cls, weight, norm_weight, norm_bias, norm_eps)
    return select(problem).pool3d_norm(
        x,
        grid,
        pool,
        has_cls=has_cls,
        weight=weight,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        norm_eps=norm_eps,
    )


def check_branch(
    op: str,
    x: Tensor,
    thw: Sequence[int],
    pool: Pool,
    has_cls: bool,
    weight: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float | None,
) -> tuple[Tensor, Grid, PoolProblem]:
    """Check one pooling branch; errors begin with `op`."""
    checks.tensor(op, "x", x, 4, "(B, H, N, D)")
    grid = checks.grid(op, "thw", thw)
    checks.token_count(op, "x", x, 2, grid, has_cls)
    checks.pool(op, pool, grid)
    checks.pool_parameters(op, x, pool, weight, norm_weight, norm_bias, norm_eps)
    needs_grad = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, norm_weight, norm_bias)
    )
    batch, heads, _, dim = x.shape
    problem = PoolProblem(
        x.device.type, x.dtype, batch, heads, dim, grid, has_cls, pool, norm_eps is not None, needs_grad
    )
    return checks.unit_last_stride(x), grid, problem


def empty_output(x: Tensor, thw: Grid, has_cls: bool, pool: Pool) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], int(has_cls) + tokens(pool.out_grid(thw)), x.shape[3])


@register_fake("pool3d_norm")
def _fake(
    x: Tensor,
    thw: Sequence[int],
    has_cls: bool,
    mode: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    weight: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float | None,
) -> Tensor:
    return empty_output(x, grid3(thw), has_cls, Pool(mode, grid3(kernel), grid3(stride), grid3(padding)))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, thw, has_cls, mode, kernel, stride, padding, weight, norm_weight, norm_bias, norm_eps = inputs
    ctx.save_for_backward(x, weight, norm_weight, norm_bias)
    ctx.thw, ctx.has_cls, ctx.norm_eps = grid3(thw), has_cls, norm_eps
    ctx.pool = Pool(mode, grid3(kernel), grid3(stride), grid3(padding))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        x, weight, norm_weight, norm_bias = _differentiable_gradients(ctx, grad)
    else:
        ((x, weight, norm_weight, norm_bias),) = pool_gradients(
            ctx.ops, [grad], ctx.saved_tensors, [ctx.thw], [ctx.pool], ctx.has_cls, [ctx.norm_eps]
        )
    return x, None, None, None, None, None, None, weight, norm_weight, norm_bias, None


def _differentiable_gradients(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    def forward(x: Tensor, weight: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None) -> Tensor:
        return reference.pool3d_norm(
            x,
            ctx.thw,
            ctx.pool,
            has_cls=ctx.has_cls,
            weight=weight,
            norm_weight=norm_weight,
            norm_bias=norm_bias,
            norm_eps=ctx.norm_eps,
        )

    return recomputed_gradients(forward, ctx.saved_tensors, [grad])


register_autograd("pool3d_norm", _backward, _setup_context)
