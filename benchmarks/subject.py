"""A computation that several implementations do, in a form that can be timed, checked and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mvit_kernels import accuracy
from mvit_kernels.accuracy import Check

Forward = Callable[[], list[Tensor]]


class Unavailable(Exception):
    """The implementation is not installed or can't run this here; the message says why."""


@dataclass(frozen=True)
class Work:
    """The least multiply-adds and bytes that a forward and its backward need: a model, from the shapes."""

    forward: float
    backward: float
    forward_bytes: float
    backward_bytes: float

    def of(self, mode: str) -> tuple[float, float]:
        """Multiply-adds and bytes of a mode."""
        both = (self.forward + self.backward, self.forward_bytes + self.backward_bytes)
        return {"forward": (self.forward, self.forward_bytes), "backward": (self.backward, self.backward_bytes)}.get(
            mode, both
        )


@dataclass(frozen=True)
class Computation:
    """A forward, what its gradients are taken of, and the gradients of its outputs."""

    forward: Forward
    leaves: list[Tensor]
    directions: list[Tensor]

    def gradients(self, outputs: list[Tensor]) -> list[Tensor | None]:
        directions = [d.to(out.dtype) for d, out in zip(self.directions, outputs, strict=True)]
        return list(torch.autograd.grad(outputs, self.leaves, directions, allow_unused=True))

    def results(self, with_gradients: bool) -> list[list[Tensor | None]]:
        """[outputs], or [outputs, gradients]."""
        if not with_gradients:
            with torch.inference_mode():
                return [list(self.forward())]
        outputs = self.forward()
        gradients = self.gradients(outputs)
        return [[out.detach() for out in outputs], gradients]


@dataclass
class Subject:
    """One computation.

    Attributes:
        makers: by implementation, what gives its forward: it may compile for minutes, or raise. "eager" is there.
        leaves, directions: as in :class:`Computation`, the same tensors for all implementations.
        exact: the computation in float64, from the same rounded numbers.
        work: what it needs.
        forward_only: implementations without gradients.
        foreign: implementations that compute the same in an engine of their own, whose memory is in no figure.
        step: applies the gradients of the leaves, as part of training.
        threads: at which it is run, where that is the subject.
    """

    makers: Mapping[str, Callable[[], Forward]]
    leaves: list[Tensor]
    directions: list[Tensor]
    exact: Callable[[], Computation]
    work: Work
    forward_only: frozenset[str] = frozenset()
    foreign: frozenset[str] = frozenset()
    step: Callable[[list[Tensor | None]], object] | None = None
    threads: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def computation(self, peer: str) -> Computation:
        """What `peer` computes; :class:`Unavailable`, or whatever its libraries raise."""
        if peer not in self.makers:
            raise Unavailable("does not have this")
        return Computation(self.makers[peer](), self.leaves, self.directions)


@dataclass
class Timed:
    """A mode of a computation as two calls: what is done before, and what is timed; how, where that needs a word."""

    before: Callable[[], object]
    call: Callable[[], object]
    remark: str = ""


def timed(mode: str, computation: Computation, step: Callable[[list[Tensor | None]], object] | None = None) -> Timed:
    """forward: without autograd. backward: the gradients of an untimed forward. training: both, and `step`."""
    if mode == "forward":

        def forward() -> list[Tensor]:
            with torch.inference_mode():
                return computation.forward()

        return Timed(lambda: None, forward)
    held: list[list[Tensor]] = []
    if mode == "backward":

        def before() -> None:
            held[:] = [computation.forward()]

        return Timed(before, lambda: computation.gradients(held.pop()))

    def training() -> Any:
        gradients = computation.gradients(computation.forward())
        return gradients if step is None else step(gradients)

    return Timed(lambda: None, training)


ENGINE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Of the largest logit: what an engine of another project may be off, for it has not promised this project's rule."""


def check(
    found: list[list[Tensor | None]],
    eager: list[list[Tensor | None]],
    exact: list[list[Tensor | None]],
    *,
    dtype: torch.dtype,
    ours: bool,
    foreign: bool,
) -> tuple[float, str | None]:
    """Largest error over what is allowed of results computed in `dtype`, and what is wrong, None if nothing.

    This package's kernels must keep the numerics rule (docs/numerics.md). Other implementations have made no such
    promise and must only be the same computation: ten times the rule's error is allowed, and for another project's
    engine :data:`ENGINE_TOLERANCE`.
    """
    worst, problem = 0.0, None
    for i, groups in enumerate(zip(found, eager, exact, strict=True)):
        named = [{str(n): value for n, value in enumerate(group) if value is not None} for group in groups]
        for entry in accuracy.judge_all(*named, gradient=i > 0, dtype=dtype):
            allowed = entry.allowed
            if not ours:
                allowed *= 10
            if foreign:
                allowed = max(allowed, ENGINE_TOLERANCE[dtype] * entry.error.scale)
            used = Check(entry.name, entry.error, entry.eager_error, allowed).used
            worst = max(worst, used)
            if used > 1 and problem is None:
                what = f"gradient {entry.name}" if i else "output"
                problem = f"not timed, the {what} is wrong: off by {entry.error.max:.1e}, {allowed:.1e} allowed"
            if ours and i == 0 and problem is None and entry.rms_used > 1:
                problem = f"not timed, the output is wrong: its rms error is {entry.rms_used:.1f} times what is allowed"
    return worst, problem


def autocast(device: torch.device, dtype: torch.dtype) -> Any:
    """Autocast to a half-precision dtype; nothing for float32."""
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()
