"""LayerNorm over channels (Ba et al., arXiv 1607.06450)."""

from __future__ import annotations

import torch
from torch import Tensor


def layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, dtype: torch.dtype | None = None
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dim, then rounded to `dtype` (None: that of x)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = torch.nn.functional.layer_norm(
        x.to(wide),
        x.shape[-1:],
        None if weight is None else weight.to(wide),
        None if bias is None else bias.to(wide),
        eps,
    )
    return y.to(dtype or x.dtype)
