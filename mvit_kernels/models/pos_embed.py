"""Absolute position embeddings, resized to the grid at hand: SlowFast's `MViT._get_pos_embed`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problem import Grid


def separate_pos_embed(spatial: Tensor, temporal: Tensor, cls: Tensor | None, stored: Grid, grid: Grid) -> Tensor:
    """The sum of a spatial and a temporal table on `grid`, the class embedding in front.

    Args:
        spatial: (1, H*W, C), temporal: (1, T, C), cls: (1, 1, C) or None; `stored` is their (T, H, W).
    Returns:
        (1, has_cls + tokens(grid), C).
    """
    grid_embed = spatial.unflatten(1, (1, stored[1], stored[2])) + temporal[:, :, None, None]
    return _with_cls(cls, _resize(grid_embed, grid))


def joint_pos_embed(table: Tensor, has_cls: bool, stored: Grid, grid: Grid) -> Tensor:
    """One table of (1, has_cls + tokens(stored), C) on `grid`: (1, has_cls + tokens(grid), C)."""
    cls, grid_embed = table[:, : int(has_cls)], table[:, int(has_cls) :].unflatten(1, stored)
    return _with_cls(cls, _resize(grid_embed, grid))


def _resize(table: Tensor, grid: Grid) -> Tensor:
    """(1, T, H, W, C) -> (1, tokens(grid), C) by trilinear interpolation, unchanged where the grid is the table's."""
    if tuple(table.shape[1:4]) != grid:
        table = F.interpolate(table.movedim(-1, 1), size=grid, mode="trilinear").movedim(1, -1)
    return table.flatten(1, 3)


def _with_cls(cls: Tensor | None, tokens: Tensor) -> Tensor:
    return tokens if cls is None else torch.cat((cls, tokens), dim=1)
