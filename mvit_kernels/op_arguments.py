"""How branches cross an op's schema, and how they come back.

A list of grids is one flat list of numbers. In a list, an absent parameter is a tensor without elements and an absent
norm_eps is -1: autograd does not reach into Tensor?[], and AOTInductor does not store float?[].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from .problem import Grid, Pool


def flat(grids: Iterable[Grid]) -> list[int]:
    """Grids as an op takes them."""
    return [n for grid in grids for n in grid]


def grid3(values: Sequence[int]) -> Grid:
    """One grid as it comes back."""
    t, h, w = values
    return t, h, w


def grids(values: Sequence[int]) -> list[Grid]:
    """Grids as they come back."""
    return [grid3(values[i : i + 3]) for i in range(0, len(values), 3)]


def pools(mode: Sequence[str], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> list[Pool]:
    """Pooling operators as they come back."""
    return [Pool(*geometry) for geometry in zip(mode, grids(kernel), grids(stride), grids(padding), strict=True)]


def stored(parameters: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """Parameters of branches as an op takes them."""
    return [like.new_empty(0) if parameter is None else parameter for parameter in parameters]


def given(parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Parameters of branches as they come back."""
    return [parameter if parameter.numel() else None for parameter in parameters]


def stored_eps(norm_eps: Sequence[float | None]) -> list[float]:
    """LayerNorm eps of branches as an op takes them."""
    return [-1.0 if eps is None else eps for eps in norm_eps]


def given_eps(norm_eps: Sequence[float]) -> list[float | None]:
    """LayerNorm eps of branches as they come back."""
    return [None if eps < 0 else eps for eps in norm_eps]
