"""`layer_norm`: LayerNorm over channels, written in the dtype that the next op reads."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..backends import select
from ..problem import LayerNormProblem
from . import checks
from .contract import LIBRARY, recomputed_gradients

LIBRARY.define("layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps, ScalarType dtype) -> Tensor")


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """LayerNorm over the last dim: (x - mean(x)) / sqrt(var(x) + eps) * weight + bias.

    Args:
        x: (..., C), C >= 1.
        weight, bias: (C,), any floating dtype, or None.
        dtype: of the result: that of x (None means it), or bfloat16 or float16 where x is float32, which saves the
            next op a cast.
    Returns:
        (..., C), contiguous. Statistics in float32 (float64 for float64); rounded once, at the end.
    Raises:
        ValueError, TypeError: a shape, value or dtype that does not fit, named with what would.
        UnsupportedError: the backend asked for can't run this problem; lists its reasons.
    """
    op = "layer_norm"
    channels = checks.channels(op, x)
    checks.norm(op, "", channels, weight, bias, eps)
    dtype = dtype or x.dtype
    checks.narrower(op, dtype, x)
    checks.same_device(op, ("x", x), ("weight", weight), ("bias", bias))
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    problem = LayerNormProblem(x.device.type, x.dtype, math.prod(x.shape[:-1]), channels, dtype, needs_grad)
    return select(problem).layer_norm(x, weight, bias, eps, dtype=dtype)


@torch.library.register_fake("mvit_kernels::layer_norm", lib=LIBRARY)
def _fake(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, eps, dtype = inputs
    ctx.save_for_backward(x, weight, bias)
    ctx.eps, ctx.dtype = eps, dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # Memory-bound, and PyTorch's own backward runs at that bound: it is used, with the row statistics made again.
    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return reference.layer_norm(x, weight, bias, ctx.eps, dtype=ctx.dtype)

    return *recomputed_gradients(forward, ctx.saved_tensors, [grad]), None, None


torch.library.register_autograd("mvit_kernels::layer_norm", _backward, setup_context=_setup_context, lib=LIBRARY)
