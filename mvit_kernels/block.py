"""The one forward of a transformer block, whoever owns its parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import mhpa, ops
from .description import MHPA, Block, Mlp, Norm
from .projection import compute_dtype, project


def forward(block: Block, x: Tensor, thw: Sequence[int]) -> tuple[Tensor, Sequence[int]]:
    """One block (MViT section 3.2, MViTv2 section 4.1), each residual added by the projection before it.

    Args:
        x: (B, has_cls + T*H*W, C) tokens, the cls token first.
        thw: the token grid (T, H, W).
    Returns:
        (B, has_cls + tokens of the pooled grid, C') and that grid.
    Raises:
        ValueError, TypeError: a shape, value or dtype that does not fit, named with what would.
        UnsupportedError: the backend asked for can't run one of the ops; lists its reasons.
    """
    # Where only projections read the normalised tokens, no module of the host, they come in the projections' dtype.
    normed = _norm(block.norm1, x, narrow=isinstance(block.attention, MHPA))
    skip = project(normed, block.project) if block.project is not None and block.project_first else x
    if block.pool_skip is not None:
        skip = ops.pool3d_norm(skip.unsqueeze(1), thw, block.pool_skip, has_cls=block.has_cls).squeeze(1)
        if skip.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            skip = skip.to(torch.promote_types(skip.dtype, torch.float32))  # as autocast's max_pool3d gives it
    if isinstance(block.attention, MHPA) and block.drop_path is None:
        x, thw = mhpa.forward(block.attention, normed, thw, residual=skip)
    else:
        attended, thw = (
            mhpa.forward(block.attention, normed, thw)
            if isinstance(block.attention, MHPA)
            else block.attention(normed, thw)
        )
        x = skip + _dropped(block, attended)

    normed = _norm(block.norm2, x, narrow=isinstance(block.mlp, Mlp))
    skip = project(normed, block.project) if block.project is not None and not block.project_first else x
    if not isinstance(block.mlp, Mlp):
        return skip + _dropped(block, block.mlp(normed)), thw
    hidden = project(normed, block.mlp.fc1, activation="gelu")
    if block.drop_path is None:
        return project(hidden, block.mlp.fc2, residual=skip), thw
    return skip + block.drop_path(project(hidden, block.mlp.fc2)), thw


def _norm(norm: Norm, x: Tensor, narrow: bool) -> Tensor:
    dtype = compute_dtype(x) if narrow and x.dtype == torch.float32 else x.dtype
    return ops.layer_norm(x, norm.weight, norm.bias, eps=norm.eps, dtype=dtype)


def _dropped(block: Block, x: Tensor) -> Tensor:
    return x if block.drop_path is None else block.drop_path(x)
