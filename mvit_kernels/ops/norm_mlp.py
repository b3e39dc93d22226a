"""`norm_mlp`: the second half of a transformer block in one pass, for inference."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..backends import select
from ..problem import NormMlpProblem
from . import checks
from .contract import LIBRARY

LIBRARY.define(
    "norm_mlp(Tensor x, Tensor? norm_weight, Tensor? norm_bias, float eps, Tensor fc1_weight, Tensor? fc1_bias, "
    "Tensor fc2_weight, Tensor? fc2_bias, Tensor? residual, ScalarType dtype) -> Tensor"
)


def norm_mlp(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """LayerNorm, the MLP with GELU and the residual of a transformer block (MViT section 3.2, MViTv2 section 4.1).

        y = residual + fc2(gelu(fc1(LayerNorm(x))))

    For inference: normed tokens and the hidden ones, four times as wide, need never be in memory. The cpu backend has a
    kernel, which gives what :func:`layer_norm` and twice :func:`linear` give, bit for bit; with gradients, and on
    backends without one, the reference runs.

    Args:
        x: (..., C), C >= 1.
        norm_weight, norm_bias: (C,), any floating dtype, or None.
        fc1_weight, fc2_weight: (M, C) and (N, M), in `dtype`, or float32 where that is bfloat16 or float16: then
            rounded to it, as autocast does.
        fc1_bias, fc2_bias: (M,) and (N,), any floating dtype, or None.
        eps: of the norm.
        residual: (..., N) in `dtype`, or float32 where that is bfloat16 or float16; None means x, N = C.
        dtype: of the normed tokens, the products and the hidden tokens: that of x (None means it), or bfloat16 or
            float16 where x is float32.
    Returns:
        (..., N), contiguous, dtype of the residual.
    Raises:
        ValueError, TypeError: a shape, value or dtype that does not fit, named with what would.
        UnsupportedError: the backend asked for can't run this problem; lists its reasons.
    """
    op = "norm_mlp"
    channels = checks.channels(op, x)
    checks.norm(op, "norm_", channels, norm_weight, norm_bias, eps)
    dtype = dtype or x.dtype
    checks.narrower(op, dtype, x)
    inputs, hidden = checks.layer(op, "fc1_", fc1_weight, fc1_bias, dtype, "dtype")
    if inputs != channels:
        raise ValueError(f"{op}: fc1_weight has shape {tuple(fc1_weight.shape)}, ({hidden}, {channels}) is right")
    inputs, outputs = checks.layer(op, "fc2_", fc2_weight, fc2_bias, dtype, "dtype")
    if inputs != hidden:
        raise ValueError(f"{op}: fc2_weight has shape {tuple(fc2_weight.shape)}, ({outputs}, {hidden}) is right")
    if residual is None:
        if outputs != channels:
            raise ValueError(f"{op}: residual is None, (..., {outputs}) is right: x has {channels} channels")
    else:
        checks.residual(op, residual, x, outputs, dtype, "dtype")
    tensors = {
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
        "fc1_weight": fc1_weight,
        "fc1_bias": fc1_bias,
        "fc2_weight": fc2_weight,
        "fc2_bias": fc2_bias,
        "residual": residual,
    }
    checks.same_device(op, ("x", x), *tensors.items())
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *tensors.values()))
    rows = math.prod(x.shape[:-1])
    problem = NormMlpProblem(x.device.type, dtype, rows, channels, hidden, outputs, needs_grad)
    return select(problem).norm_mlp(
        *(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias),
        eps=eps,
        residual=residual,
        dtype=dtype,
    )


@torch.library.register_fake("mvit_kernels::norm_mlp", lib=LIBRARY)
def _fake(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    like = x if residual is None else residual
    return x.new_empty((*x.shape[:-1], fc2_weight.shape[0]), dtype=like.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


def _backward(ctx: Any, grad: Tensor) -> NoReturn:
    raise RuntimeError("norm_mlp is for inference: layer_norm and linear have gradients")


torch.library.register_autograd("mvit_kernels::norm_mlp", _backward, setup_context=_setup_context, lib=LIBRARY)
