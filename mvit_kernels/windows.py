"""Windows cut from pooled maps: rectangles of a T = 1 grid, zero-padded on the right and at the bottom."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .description import Windows
from .problem import Grid

Size = tuple[int, int]


def partitions(owner: str, windows: Windows, grid_q: Grid, grid_k: Grid) -> tuple[tuple[Grid, Grid], tuple[Size, Size]]:
    """Grids of one window and window sizes (h, w), of q and of k and v.

    Raises:
        ValueError: a grid with T > 1, or more windows in one of the maps than in the other.
    """
    for name, grid in (("q", grid_q), ("k", grid_k)):
        if grid[0] != 1:
            raise ValueError(f"{owner}: the pooled {name} grid is {tuple(grid)}, T = 1 is right with windows")
    count_q, count_k = counts(grid_q, windows.q), counts(grid_k, windows.kv)
    if count_q != count_k:
        raise ValueError(
            f"{owner}: windows {windows.q} cut pooled q {grid_q[1:]} into {count_q} and windows {windows.kv} pooled k "
            f"{grid_k[1:]} into {count_k}, as many in both is right"
        )
    return ((1, *windows.q), (1, *windows.kv)), (windows.q, windows.kv)


def counts(grid: Grid, size: Size) -> Size:
    """Windows down and across."""
    return -(-grid[1] // size[0]), -(-grid[2] // size[1])


def partition(x: Tensor, grid: Grid, size: Size) -> Tensor:
    """(B, H, h*w, D) on a map -> (B * windows, H, tokens of a window, D)."""
    (down, across), (height, width) = counts(grid, size), size
    maps = x.unflatten(2, grid[1:])
    pad = (0, 0, 0, across * width - grid[2], 0, down * height - grid[1])
    if any(pad):
        maps = F.pad(maps, pad)
    cut = maps.unflatten(2, (down, height)).unflatten(4, (across, width))  # (B, H, down, height, across, width, D)
    return cut.permute(0, 2, 4, 1, 3, 5, 6).flatten(0, 2).flatten(2, 3)


def merge(x: Tensor, grid: Grid, size: Size) -> Tensor:
    """(B * windows, tokens of a window, H, D) -> (B, h*w, H, D): :func:`partition` undone, heads behind the tokens."""
    (down, across), (height, width) = counts(grid, size), size
    cut = x.unflatten(0, (-1, down, across)).unflatten(3, (height, width))  # (B, down, across, height, width, H, D)
    maps = cut.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return maps[:, : grid[1], : grid[2]].flatten(1, 2)
