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


@dataclass(frozen=True)
class Check:
    """One tensor of several that were judged: its error and eager's against float64, and the error allowed.

    Attributes:
        rms_used: the part of the rms error's bound that is taken.
    """

    name: str
    error: Difference
    eager_error: Difference
    allowed: float
    rms_used: float = 0.0

    @property
    def passed(self) -> bool:
        return self.error.max <= self.allowed  # False for NaN

    @property
    def used(self) -> float:
        """The part of the allowance that the error takes; infinite for NaN."""
        if not self.allowed or self.error.max != self.error.max:
            return 0.0 if self.passed else float("inf")
        return self.error.max / self.allowed


def judge_all(
    found: dict[str, Tensor],
    eager: dict[str, Tensor],
    oracle: dict[str, Tensor],
    *,
    gradient: bool,
    dtype: torch.dtype | None = None,
) -> list[Check]:
    """The bound of :func:`judge` on the maximum, tensor by tensor, with one addition for gradients that cancel.

    Some gradients are zero in exact arithmetic, that of a bias on every key for one, so that eager's own error is a
    matter of luck there. An error below the rounding of the largest gradient beside it is allowed everywhere.
    """
    if not found.keys() == eager.keys() == oracle.keys():
        missing = found.keys() ^ eager.keys() | found.keys() ^ oracle.keys()
        nothing = Difference(float("nan"), float("nan"), 0.0)
        return [Check(f"{name} (not on both sides)", nothing, nothing, 0.0) for name in sorted(missing)]
    largest = max((float(value.abs().max()) for value in oracle.values() if value.numel()), default=0.0)
    checks = []
    for name, value in oracle.items():
        verdict = judge(found[name], eager[name], value, gradient=gradient, dtype=dtype)
        kind = dtype or found[name].dtype
        floor = (FLOAT64_TOLERANCE if kind == torch.float64 else torch.finfo(kind).eps) * (largest if gradient else 0.0)
        rms = verdict.error.rms / verdict.rms_bound if verdict.rms_bound else 0.0
        checks.append(Check(name, verdict.error, verdict.eager_error, max(verdict.max_bound, floor), rms))
    return checks


def difference(a: Tensor, b: Tensor) -> Difference:
    """Difference of two tensors of one shape, computed in float64."""
    if a.shape != b.shape:
        raise ValueError(f"difference: a has shape {tuple(a.shape)}, {tuple(b.shape)} like b is right")
    a, b = a.detach().double(), b.detach().double()
    if b.numel() == 0:
        return Difference(0.0, 0.0, 0.0)
    delta = (a - b).abs()
    return Difference(delta.max().item(), _rms(delta), b.abs().max().item())


def judge(
    result: Tensor, eager: Tensor, oracle: Tensor, *, gradient: bool = False, dtype: torch.dtype | None = None
) -> Verdict:
    """Compare `result` and `eager`, one dtype, with the float64 `oracle` of the same shape.

    `dtype` is what they were computed in, by default their own: autocast gives float32 gradients of what it rounds.
    """
    dtype = dtype or result.dtype
    error, eager_error = difference(result, oracle), difference(eager, oracle)
    if dtype == torch.float64:
        bound = FLOAT64_TOLERANCE * error.scale
        return Verdict(error, eager_error, bound, bound)
    noise = difference(oracle.to(dtype) + 0.3 - 0.3, oracle).max
    eps = torch.finfo(dtype).eps
    return Verdict(
        error,
        eager_error,
        max_bound=(3 if gradient else 2) * eager_error.max + 2 * noise,
        rms_bound=1.5 * eager_error.rms + eps * _rms(oracle.double()),
    )


def _rms(x: Tensor) -> float:
    return math.sqrt(x.square().mean().item()) if x.numel() else 0.0
