"""The projections of a transformer block, with what follows them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, residual: Tensor | None = None, activation: str = "none"
) -> Tensor:
    """activation(x W^T + bias) + residual.

    Args:
        x: (..., K).
        weight: (N, K), bias: (N,), both rounded to x's dtype.
        residual: (..., N).
        activation: "none" or "gelu", the exact one (erf).
    Returns:
        (..., N), dtype of x, or what it makes with the residual's.
    """
    y = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    if activation == "gelu":
        y = F.gelu(y)
    return y if residual is None else y + residual
