"""Attention over pooled tokens: MViT (arXiv 2104.11227) equation 2, MViTv2 (arXiv 2112.01526) equations 3 and 4."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Grid, tokens


def expand_rel_pos(rel_pos: Tensor, grid_k: Grid) -> Tensor:
    """(..., Kt+Kh+Kw) rows -> (..., Kt*Kh*Kw) bias, the sum of one entry per axis for every key."""
    t, h, w = rel_pos.split(grid_k, dim=-1)
    return (t[..., :, None, None] + h[..., None, :, None] + w[..., None, None, :]).flatten(-3)


def pooling_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rel_pos: Tensor | None = None,
    grid_k: Grid | None = None,
    scale: float,
    has_cls: bool,
    residual: str = "none",
) -> tuple[Tensor, Tensor]:
    """softmax(scale * q k^T + bias) v (+ q), and the log-sum-exp of the biased scores.

    Args:
        q: (B, H, Nq, D), unscaled.
        k, v: (B, H, Nk, D).
        rel_pos: (B, H, Nq, Kt+Kh+Kw) from :func:`decomposed_rel_pos`, with grid_k = (Kt, Kh, Kw).
        residual: "none", "all", or "no_cls" (the cls row gets no residual).
    Returns:
        out (B, Nq, H, D) in q's dtype, and lse (B, H, Nq), natural logarithm.
    """
    cls = int(has_cls)
    scores = (scale * q) @ k.transpose(-1, -2)
    if rel_pos is not None:
        assert grid_k is not None
        bias = expand_rel_pos(rel_pos[:, :, cls:], grid_k).to(scores.dtype)
        assert bias.shape[-1] == tokens(grid_k)
        scores = scores + torch.nn.functional.pad(bias, (cls, 0, cls, 0))
    out = scores.softmax(-1) @ v
    if residual == "all":
        out = out + q
    elif residual == "no_cls":
        out = torch.cat((out[:, :, :cls], out[:, :, cls:] + q[:, :, cls:]), dim=2)
    lse = scores.to(torch.promote_types(scores.dtype, torch.float32)).logsumexp(-1)
    return out.transpose(1, 2).contiguous(), lse
