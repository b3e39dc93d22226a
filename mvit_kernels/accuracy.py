"""The numerics rule (docs/numerics.md) as a function: is a result as good as eager PyTorch's in the same dtype?

Both are compared with a float64 oracle computed from the same rounded inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT64_TOLERANCE = 1e-12
"""Of scale, for float64 results: there the oracle is no more precise than what it judges, and eager is the oracle."""


@dataclass(frozen=True)
class Difference:
    """max and rms of |a - b|, and scale = max |b|."""

    max: float
    rms: float
    scale: float

    @property
    def relative_max(self) -> float:
        return self.max / self.scale if self.scale else self.max

    @property
    def relative_rms(self) -> float:
        return self.rms / self.scale if self.scale else self.rms


@dataclass(frozen=True)
class Verdict:
    """Errors of a result and of eager against the oracle, and the bounds on the former.

    Attributes:
        error, eager_error: differences from the oracle.
        max_bound: 2 * eager's max (3 * for a gradient) + 2 * noise, where noise is
            max |(oracle + 0.3) - 0.3 - oracle| in the tested dtype.
        rms_bound: 1.5 * eager's rms + eps * rms(oracle).
    """

    error: Difference
    eager_error: Difference
    max_bound: float
    rms_bound: float

    @property
    def max_passed(self) -> bool:
        return self.error.max <= self.max_bound  # False for NaN

    @property
    def passed(self) -> bool:
        return self.max_passed and self.error.rms <= self.rms_bound

    def __str__(self) -> str:
        return (
            f"max error {self.error.max:.2e}, {self.max_bound:.2e} allowed; "
            f"rms error {self.error.rms:.2e}, {self.rms_bound:.2e} allowed"
        )


def difference(a: Tensor, b: Tensor) -> Difference:
    """Difference of two tensors of one shape, computed in float64."""
    if a.shape != b.shape:
        raise ValueError(f"difference: a has shape {tuple(a.shape)}, {tuple(b.shape)} like b is right")
    a, b = a.detach().double(), b.detach().double()
    if b.numel() == 0:
        return Difference(0.0, 0.0, 0.0)
    delta = (a - b).abs()
    return Difference(delta.max().item(), _rms(delta), b.abs().max().item())


def judge(result: Tensor, eager: Tensor, oracle: Tensor, *, gradient: bool = False) -> Verdict:
    """Compare `result` and `eager`, one dtype, with the float64 `oracle` of the same shape."""
    error, eager_error = difference(result, oracle), difference(eager, oracle)
    if result.dtype == torch.float64:
        bound = FLOAT64_TOLERANCE * error.scale
        return Verdict(error, eager_error, bound, bound)
    noise = difference(oracle.to(result.dtype) + 0.3 - 0.3, oracle).max
    eps = torch.finfo(result.dtype).eps
    return Verdict(
        error,
        eager_error,
        max_bound=(3 if gradient else 2) * eager_error.max + 2 * noise,
        rms_bound=1.5 * eager_error.rms + eps * _rms(oracle.double()),
    )


def _rms(x: Tensor) -> float:
    return math.sqrt(x.square().mean().item()) if x.numel() else 0.0
