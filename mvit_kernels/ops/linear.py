"""`linear`: a projection with the activation or the residual that follows it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..backends import select
from ..problem import ACTIVATIONS, LinearProblem
from . import checks
from .contract import LIBRARY, recomputed_gradients

LIBRARY.define("linear(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str activation) -> Tensor")


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """A projection with what follows it in a transformer block, in one pass.

        y = activation(x W^T + bias) + residual

    Args:
        x: (..., K), K >= 1.
        weight: (N, K) in x's dtype, or float32 where x is bfloat16 or float16: then rounded to x's dtype, as autocast
            does.
        bias: (N,), any floating dtype.
        residual: (..., N) in x's dtype, or float32 where x is bfloat16 or float16: then so is the result.
        activation: "none" or "gelu", the exact one (erf).
    Returns:
        (..., N), contiguous, dtype of x, or of the residual. Rounded once, at the end.
    Raises:
        ValueError, TypeError: a shape, value or dtype that does not fit, named with what would.
        UnsupportedError: the backend asked for can't run this problem; lists its reasons.
    """
    op = "linear"
    checks.floating(op, "x", x)
    inputs, outputs = checks.layer(op, "", weight, bias, x.dtype, "x")
    if x.dim() < 1 or x.shape[-1] != inputs:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, (..., {inputs}) like weight is right")
    if residual is not None:
        checks.residual(op, residual, x, outputs, x.dtype, "x")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation is {activation!r}, one of {', '.join(ACTIVATIONS)} is right")
    checks.same_device(op, ("x", x), ("weight", weight), ("bias", bias), ("residual", residual))
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, residual))
    rows = math.prod(x.shape[:-1])
    problem = LinearProblem(
        x.device.type, x.dtype, rows, inputs, outputs, bias is not None, residual is not None, activation, needs_grad
    )
    backend = select(problem)
    if needs_grad and activation != "none":
        # The gradient of GELU needs what went into it: kept here, where the fused op would compute it a second time.
        y = F.gelu(backend.linear(x, weight, bias, residual=None, activation="none"))
        return y if residual is None else y + residual
    return backend.linear(x, weight, bias, residual=residual, activation=activation)


@torch.library.register_fake("mvit_kernels::linear", lib=LIBRARY)
def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str) -> Tensor:
    dtype = x.dtype if residual is None else residual.dtype
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, residual, activation = inputs
    # Of the residual only its dtype matters, but a gradient of the gradient needs it in the graph.
    ctx.save_for_backward(x, weight, bias)
    ctx.activation = activation
    ctx.residual_dtype = None if residual is None else residual.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    grad_residual = grad if ctx.needs_input_grad[3] else None
    grad = grad.to(x.dtype)
    if torch.is_grad_enabled():

        def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return reference.linear(x, weight, bias, activation=ctx.activation)

        return *recomputed_gradients(forward, [x, weight, bias], [grad]), grad_residual, None
    if ctx.activation == "gelu":
        before = torch.ops.mvit_kernels.linear(x, weight, bias, None, "none")
        grad = torch.ops.aten.gelu_backward(grad, before)
    grad_x = grad_weight = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.mvit_kernels.linear(grad, weight.t(), None, None, "none")
    rows = grad.flatten(0, -2) if grad.dim() > 1 else grad.unsqueeze(0)
    if ctx.needs_input_grad[1]:
        grad_weight = (rows.t() @ x.reshape(rows.shape[0], weight.shape[1])).to(weight.dtype)
    if bias is not None and ctx.needs_input_grad[2]:
        grad_bias = rows.sum(0, dtype=torch.promote_types(bias.dtype, rows.dtype)).to(bias.dtype)
    return grad_x, grad_weight, grad_bias, grad_residual, None


torch.library.register_autograd("mvit_kernels::linear", _backward, setup_context=_setup_context, lib=LIBRARY)
