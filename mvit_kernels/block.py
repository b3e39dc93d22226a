"""The one forward of a transformer block, whoever owns its parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import backends, mhpa, ops
from .description import MHPA, Block, Mlp, Norm
from .problem import NormMlpProblem
from .projection import compute_dtype, own_rules, project


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

    return _norm_and_mlp(block, x), thw


def _norm_and_mlp(block: Block, x: Tensor) -> Tensor:
    """The second half: norm2, the MLP and its residual."""
    change = None if block.project_first else block.project  # of channels, on the skip path
    if isinstance(block.mlp, Mlp) and block.drop_path is None and _runs_in_one_pass(block.norm2, block.mlp, x):
        # The norm again, for the skip path alone: it costs less than tokens that are written for both.
        skip = None if change is None else project(_norm(block.norm2, x, narrow=True), change)
        return ops.norm_mlp(
            *(x, block.norm2.weight, block.norm2.bias),
            *(block.mlp.fc1.weight, block.mlp.fc1.bias, block.mlp.fc2.weight, block.mlp.fc2.bias),
            eps=block.norm2.eps,
            residual=skip,
            dtype=compute_dtype(x),
        )
    normed = _norm(block.norm2, x, narrow=isinstance(block.mlp, Mlp))
    skip = x if change is None else project(normed, change)
    if not isinstance(block.mlp, Mlp):
        return skip + _dropped(block, block.mlp(normed))
    hidden = project(normed, block.mlp.fc1, activation="gelu")
    if block.drop_path is None:
        return project(hidden, block.mlp.fc2, residual=skip)
    return skip + block.drop_path(project(hidden, block.mlp.fc2))


def _runs_in_one_pass(norm: Norm, mlp: Mlp, x: Tensor) -> bool:
    """Whether a backend takes norm and MLP as one op, and gains by it."""
    dtype, wide = compute_dtype(x), torch.promote_types(x.dtype, torch.float32)
    weights = mlp.fc1.weight, mlp.fc2.weight
    if x.dtype not in (dtype, wide) or any(own_rules(w) or w.dtype not in (dtype, wide) for w in weights):
        return False
    parameters = (norm.weight, norm.bias, *mlp.fc1.parameters(), *mlp.fc2.parameters())
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *parameters))
    (hidden, channels), outputs, rows = weights[0].shape, weights[1].shape[0], math.prod(x.shape[:-1])
    problem = NormMlpProblem(x.device.type, dtype, rows, channels, hidden, outputs, needs_grad)
    backend = backends.peek(problem)
    return backend is not None and backend.gains_by_norm_mlp(problem)


def _norm(norm: Norm, x: Tensor, narrow: bool) -> Tensor:
    dtype = compute_dtype(x) if narrow and x.dtype == torch.float32 else x.dtype
    return ops.layer_norm(x, norm.weight, norm.bias, eps=norm.eps, dtype=dtype)


def _dropped(block: Block, x: Tensor) -> Tensor:
    return x if block.drop_path is None else block.drop_path(x)
