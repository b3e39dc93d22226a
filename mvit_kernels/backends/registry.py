"""The list of backends, and how one is chosen for a problem."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from ..problem import Problem
from .base import Backend, UnsupportedError
from .cpu import CpuBackend
from .cuda import CudaBackend
from .eager import EagerBackend
from .triton import TritonBackend

ENVIRONMENT_VARIABLE = "MVIT_KERNELS_BACKEND"

_BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (CudaBackend(), TritonBackend(), CpuBackend(), EagerBackend())
}
"""In the order of automatic choice."""

_FROM_ENVIRONMENT = os.environ.get(ENVIRONMENT_VARIABLE) or None
_chosen: ContextVar[str | None] = ContextVar("mvit_kernels_backend", default=None)


@dataclass(frozen=True)
class Decision:
    """One op call and the backend that ran it, as collected by :func:`record`.

    Attributes:
        notes: why no backend before it was chosen, where one serves this type of device; what the backend itself tells.
    """

    layer: str | None
    problem: Problem
    backend: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Remark:
    """Something to know about how a layer runs that is no op call, as collected by :func:`record`."""

    layer: str | None
    text: str


class Log(list[Decision]):
    """The decisions made inside :func:`record`, in order, and the remarks."""

    def __init__(self) -> None:
        super().__init__()
        self.remarks: list[Remark] = []


_recorder: ContextVar[Log | None] = ContextVar("mvit_kernels_recorder", default=None)
_layer: ContextVar[str | None] = ContextVar("mvit_kernels_layer", default=None)


def backend_names() -> list[str]:
    """Names of all backends, in the order of automatic choice."""
    return list(_BACKENDS)


def get(name: str) -> Backend:
    """The backend called `name`; ValueError naming the known ones otherwise."""
    if name not in _BACKENDS:
        raise ValueError(f"backend {name!r} is not known: one of {', '.join(_BACKENDS)}")
    return _BACKENDS[name]


def available() -> list[str]:
    """Names of the backends that can run in this process."""
    return [name for name, backend in _BACKENDS.items() if backend.unavailable() is None]


def reasons_not_supported(problem: Problem, backend: str) -> list[str]:
    """Why `backend` can't run `problem`; empty if it can."""
    return get(backend).reasons(problem)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside the `with` on one backend, or raise :class:`UnsupportedError` with its reasons.

    Overrides the environment variable MVIT_KERNELS_BACKEND, which does the same for a whole process.
    """
    token = _chosen.set(get(name).name)
    try:
        yield
    finally:
        _chosen.reset(token)


def select(problem: Problem) -> Backend:
    """The backend that runs `problem`: the one asked for, else the first without a reason against it."""
    name = _chosen.get() or _FROM_ENVIRONMENT
    backend = _explicit(name, problem) if name is not None else _automatic(problem)
    log = _recorder.get()
    if log is not None:
        log.append(Decision(_layer.get(), problem, backend.name, tuple(_notes(problem, backend))))
    return backend


def _notes(problem: Problem, chosen: Backend) -> list[str]:
    """Why no backend before the chosen one, where one serves this type of device; what the chosen one tells."""
    before: list[Backend] = []
    if (_chosen.get() or _FROM_ENVIRONMENT) is None:
        names = backend_names()
        before = [get(name) for name in names[: names.index(chosen.name)]]
    return [*_against(problem, (b for b in before if b.serves(problem.device))), *chosen.notes(problem)]


def _against(problem: Problem, candidates: Iterable[Backend]) -> list[str]:
    return [f"not {backend.name}: {'; '.join(backend.reasons(problem))}" for backend in candidates]


def peek(problem: Problem) -> Backend | None:
    """The backend that would run `problem`, None where none can; no decision is made or recorded."""
    name = _chosen.get() or _FROM_ENVIRONMENT
    for backend in _BACKENDS.values() if name is None else [get(name)]:
        if backend.can_run(problem):
            return backend
    return None


def pools_queries(device: str) -> bool:
    """Whether a backend has a kernel of attention that pools its queries for this device type."""
    return any(backend.pools_queries and backend.serves(device) for backend in _BACKENDS.values())


def remark(text: str) -> None:
    """Tell what collects decisions, if anything does, about the layer that runs."""
    log = _recorder.get()
    if log is not None:
        log.remarks.append(Remark(_layer.get(), text))


def _explicit(name: str, problem: Problem) -> Backend:
    backend = get(name)
    reasons = backend.reasons(problem)
    if reasons:
        raise UnsupportedError(f"{problem.op}: backend {name!r} can't run {problem}: {'; '.join(reasons)}")
    return backend


def _automatic(problem: Problem) -> Backend:
    for backend in _BACKENDS.values():
        if backend.can_run(problem):
            return backend
    raise UnsupportedError(explain(problem))


@contextmanager
def record() -> Iterator[Log]:
    """Collect every decision made inside the `with`, in order."""
    log = Log()
    token = _recorder.set(log)
    try:
        yield log
    finally:
        _recorder.reset(token)


@contextmanager
def layer_named(name: str) -> Iterator[None]:
    """Decisions recorded inside the `with` carry this layer name."""
    token = _layer.set(name)
    try:
        yield
    finally:
        _layer.reset(token)


def label(name: str) -> str:
    """A backend's name with the instruction set or architecture it uses: "cpu (avx512)"."""
    variant = get(name).variant()
    return name if variant is None else f"{name} ({variant})"


def describe_choice(problem: Problem) -> str:
    """The backend that would run `problem`, with the reasons that kept faster ones away from it."""
    backend = peek(problem)
    if backend is None:
        name = _chosen.get() or _FROM_ENVIRONMENT
        return f"no backend [{'; '.join(_against(problem, _BACKENDS.values() if name is None else [get(name)]))}]"
    notes = _notes(problem, backend)
    return label(backend.name) + (f" [{'; '.join(notes)}]" if notes else "")


def explain(problem: Problem) -> str:
    """Each backend in the order of choice: chosen, able, or its reasons against `problem`."""
    lines = [f"{problem.op} {problem}"]
    forced = _chosen.get() or _FROM_ENVIRONMENT
    chosen = forced
    for name, backend in _BACKENDS.items():
        reasons = backend.reasons(problem)
        if reasons:
            lines.append(f"  {name}: no, {'; '.join(reasons)}")
            continue
        mark = "able"
        if chosen is None or chosen == name:
            chosen, mark = name, "chosen" + (" (asked for)" if forced else "")
        notes = list(backend.notes(problem))
        lines.append("  " + "; ".join([f"{name}: {mark}", *notes]))
    return "\n".join(lines)
