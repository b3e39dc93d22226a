"""The second half of a transformer block."""

from __future__ import annotations

import torch
from torch import Tensor

from .layer_norm import layer_norm
from .linear import linear


def norm_mlp(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    eps: float,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """residual + fc2(gelu(fc1(LayerNorm(x)))), x itself where `residual` is None; products in `dtype` (None: x's)."""
    normed = layer_norm(x, norm_weight, norm_bias, eps, dtype=dtype)
    hidden = linear(normed, fc1_weight, fc1_bias, activation="gelu")
    return linear(hidden, fc2_weight, fc2_bias, residual=x if residual is None else residual)
