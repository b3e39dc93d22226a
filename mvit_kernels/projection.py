"""Projections by parameters, under autocast as eager PyTorch does them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from . import ops, reference


def project(x: Tensor, layer: nn.Linear, *, residual: Tensor | None = None, activation: str = "none") -> Tensor:
    """`ops.linear` with the parameters of `layer`."""
    return linear(x, layer.weight, layer.bias, residual=residual, activation=activation)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, residual: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """:func:`mvit_kernels.ops.linear`, in autocast's dtype where it is on, and with eager PyTorch's type promotion.

    The residual stream keeps its dtype: a float32 residual of a bfloat16 projection gives a float32 result.
    """
    if own_rules(weight):
        return reference.linear(x, weight, bias, residual=residual, activation=activation)
    x = x.to(compute_dtype(x))
    wide = torch.promote_types(x.dtype, torch.float32)
    if weight.dtype not in (x.dtype, wide):
        weight = weight.to(x.dtype)
    if residual is not None and residual.dtype not in (x.dtype, wide):
        return ops.linear(x, weight, bias, activation=activation) + residual
    return ops.linear(x, weight, bias, residual=residual, activation=activation)


def own_rules(weight: Tensor) -> bool:
    """Whether a kernel can't read it: a DTensor, a quantised weight."""
    own: bool = is_traceable_wrapper_subclass(weight)
    return own


def compute_dtype(x: Tensor) -> torch.dtype:
    """What a projection of x computes in: autocast's dtype where that is on (it leaves float64 alone), else x's."""
    kind = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype
