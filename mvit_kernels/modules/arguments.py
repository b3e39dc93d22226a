"""Checks of constructor arguments. Each failure is one line: class, argument, what it was, what would be right."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..problem import Grid


def positive_int(owner: str, name: str, value: Any) -> int:
    number = _index(value)
    if number is None or isinstance(value, bool):
        raise TypeError(f"{owner}: {name} is {value!r}, a positive int is right")
    if number < 1:
        raise ValueError(f"{owner}: {name} is {number}, a positive int is right")
    return number


def three_positive_ints(owner: str, name: str, value: Any) -> Grid:
    numbers = _indices(value)
    if numbers is None:
        raise TypeError(f"{owner}: {name} is {value!r}, three positive ints (T, H, W) are right")
    if len(numbers) != 3 or min(numbers) < 1:
        raise ValueError(f"{owner}: {name} is {tuple(numbers)}, three positive ints (T, H, W) are right")
    return numbers[0], numbers[1], numbers[2]


def pooling(owner: str, branch: str, kernel: Sequence[int], stride: Sequence[int]) -> tuple[Grid, Grid] | None:
    """Kernel and stride of one branch, None where it is not pooled: an empty kernel, or kernel and stride all ones."""
    if _indices(kernel) == () and _indices(stride) in ((), (1, 1, 1)):
        return None
    checked_kernel = three_positive_ints(owner, f"kernel_{branch}", kernel)
    if checked_kernel == (1, 1, 1) and _indices(stride) == ():
        return None
    checked_stride = three_positive_ints(owner, f"stride_{branch}", stride)
    return None if checked_kernel == checked_stride == (1, 1, 1) else (checked_kernel, checked_stride)


def choice(owner: str, name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{owner}: {name} is {value!r}, one of {', '.join(map(repr, choices))} is right")


def probability(owner: str, name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{owner}: {name} is {value}, a probability from 0 to 1 is right")


def layer_norm(owner: str, norm: nn.Module, channels: int) -> nn.Module:
    """`norm` itself, if it is a LayerNorm over the last dim: the kernels read its weight, bias and eps."""
    missing = [name for name in ("normalized_shape", "eps", "weight", "bias") if not hasattr(norm, name)]
    if missing:
        raise TypeError(
            f"{owner}: norm_layer makes a {type(norm).__name__}, a LayerNorm "
            f"(with normalized_shape, eps, weight and bias) is right"
        )
    if tuple(norm.normalized_shape) != (channels,):  # type: ignore[arg-type]
        raise ValueError(f"{owner}: norm_layer normalises {norm.normalized_shape}, ({channels},) is right")
    eps = norm.eps
    if not isinstance(eps, int | float) or not math.isfinite(eps) or eps < 0:
        raise ValueError(f"{owner}: norm_layer has eps {eps}, a finite number of at least 0 is right")
    return norm


def _index(value: Any) -> int | None:
    try:
        return operator.index(value)
    except TypeError:
        return None


def _indices(value: Any) -> tuple[int, ...] | None:
    try:
        return tuple(operator.index(n) for n in value)
    except TypeError:
        return None
