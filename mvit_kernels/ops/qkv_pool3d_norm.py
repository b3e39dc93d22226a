"""`qkv_pool3d_norm`: the poolings of one layer's q, k and v in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends import select
from ..op_arguments import given, given_eps, grids, pools
from ..problem import Pool, QkvPoolProblem
from . import checks
from .contract import define, recomputed_gradients, register_autograd, register_fake
from .pool3d_norm import check_branch, empty_output
from .pool_backward import pool_gradients

define(
    "qkv_pool3d_norm(Tensor[] x, SymInt[] thw, bool has_cls, str[] mode, int[] kernel, int[] stride, int[] padding, "
    "Tensor[] weight, Tensor[] norm_weight, Tensor[] norm_bias, float[] norm_eps) -> Tensor[]"
)


def qkv_pool3d_norm(
    x: Sequence[Tensor],
    thw: Sequence[Sequence[int]],
    pool: Sequence[Pool],
    *,
    has_cls: bool = False,
    weight: Sequence[Tensor | None],
    norm_weight: Sequence[Tensor | None],
    norm_bias: Sequence[Tensor | None],
    norm_eps: Sequence[float | None],
) -> list[Tensor]:
    """:func:`pool3d_norm` of one to three branches in one call, one launch on a GPU.

    Every argument but has_cls is a sequence with one entry per branch, shapes as in :func:`pool3d_norm`. The branches
    are independent: their grids, pools and parameters may differ; batch, dtype and device are common.

    Returns:
        One tensor per branch.
    Raises:
        ValueError, TypeError: as :func:`pool3d_norm`, with the branch's index.
        UnsupportedError: the backend asked for can't run this problem; lists its reasons.
    """
    op = "qkv_pool3d_norm"
    lengths = {
        "x": len(x),
        "thw": len(thw),
        "pool": len(pool),
        "weight": len(weight),
        "norm_weight": len(norm_weight),
        "norm_bias": len(norm_bias),
        "norm_eps": len(norm_eps),
    }
    if not 1 <= len(x) <= 3 or len(set(lengths.values())) != 1:
        raise ValueError(f"{op}: arguments have lengths {lengths}, one entry per branch, 1 to 3 branches, is right")
    branches = [
        check_branch(f"{op} branch {i}", x_, thw_, pool_, has_cls, *parameters)
        for i, (x_, thw_, pool_, *parameters) in enumerate(
            zip(x, thw, pool, weight, norm_weight, norm_bias, norm_eps, strict=True)
        )
    ]
    for i, (branch, _, _) in enumerate(branches):
        checks.same_device(op, ("x[0]", x[0]), (f"x[{i}]", branch))
        if branch.dtype != x[0].dtype or branch.shape[0] != x[0].shape[0]:
            raise ValueError(
                f"{op}: x[{i}] is {branch.dtype} of batch {branch.shape[0]}, "
                f"{x[0].dtype} of batch {x[0].shape[0]} like x[0] is right"
            )
    return select(QkvPoolProblem(tuple(problem for _, _, problem in branches))).qkv_pool3d_norm(
        [branch for branch, _, _ in branches],
        [grid for _, grid, _ in branches],
        pool,
        has_cls=has_cls,
        weight=weight,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        norm_eps=norm_eps,
    )


@register_fake("qkv_pool3d_norm")
def _fake(
    x: Sequence[Tensor],
    thw: Sequence[int],
    has_cls: bool,
    mode: Sequence[str],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    weight: Sequence[Tensor],
    norm_weight: Sequence[Tensor],
    norm_bias: Sequence[Tensor],
    norm_eps: Sequence[float],
) -> list[Tensor]:
    branches = zip(x, grids(thw), pools(mode, kernel, stride, padding), strict=True)
    return [empty_output(x_, grid, has_cls, pool) for x_, grid, pool in branches]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, thw, has_cls, mode, kernel, stride, padding, weight, norm_weight, norm_bias, norm_eps = inputs
    ctx.save_for_backward(*x, *weight, *norm_weight, *norm_bias)
    ctx.set_materialize_grads(False)
    ctx.thw, ctx.has_cls, ctx.norm_eps = grids(thw), has_cls, given_eps(norm_eps)
    ctx.pool = pools(mode, kernel, stride, padding)


def _backward(ctx: Any, grad: list[Tensor | None]) -> tuple[list[Tensor | None] | None, ...]:
    n = len(ctx.pool)
    if torch.is_grad_enabled():
        flat = _differentiable_gradients(ctx, grad)
    else:
        branches = pool_gradients(ctx.ops, grad, ctx.saved_tensors, ctx.thw, ctx.pool, ctx.has_cls, ctx.norm_eps)
        flat = [branches[i][which] for which in range(4) for i in range(n)]
    parameters = (flat[n : 2 * n], flat[2 * n : 3 * n], flat[3 * n :])
    return flat[:n], None, None, None, None, None, None, *parameters, None


def _differentiable_gradients(ctx: Any, grad: list[Tensor | None]) -> list[Tensor | None]:
    n = len(ctx.pool)

    def forward(*tensors: Tensor) -> list[Tensor]:
        present = given(tensors[n:])
        return reference.qkv_pool3d_norm(
            tensors[:n],
            ctx.thw,
            ctx.pool,
            has_cls=ctx.has_cls,
            weight=present[:n],
            norm_weight=present[n : 2 * n],
            norm_bias=present[2 * n :],
            norm_eps=ctx.norm_eps,
        )

    return recomputed_gradients(forward, ctx.saved_tensors, grad)


register_autograd("qkv_pool3d_norm", _backward, _setup_context)
