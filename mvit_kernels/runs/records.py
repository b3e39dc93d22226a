"""A run as data, its JSON file, and what is wrong with a file that is none."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..measure import Spread

FORMAT = "mvit_kernels benchmark run"
VERSION = 1

KERNELS = ("cpu", "triton", "cuda")
"""Backends of this package that have kernels; an implementation's name starts with one, "cpu-block" for one."""

MEASURED = "measured"
STATUSES = {
    MEASURED: "timed after its result was found right",
    "unavailable": "not installed, or can't run this here",
    "wrong": "its result is wrong, so it was not timed",
    "failed": "raised an error",
    "crashed": "ended its process, by a signal for one",
    "too slow": "took longer than a row may",
    "too large": "needs more memory than is free",
}
"""What can become of a row."""


class RunError(ValueError):
    """The file can't be read as a run; the message is one line that starts with the path."""


@dataclass(frozen=True)
class Row:
    """One implementation of one case.

    Attributes:
        level: "op", "layer", "block", "model" or "sweep".
        model: published configuration.
        part: of the model: "block 3", "block 3 pooling_attention", "" for the whole.
        mode: "forward", "backward" (of a forward that is not timed) or "training" (both, and a model's optimizer).
        peer: implementation; "eager" is what the ratios are over.
        axis, value: what is swept and where, "" and 0 elsewhere.
        status, reason: one of :data:`STATUSES`, and why where it is not "measured"; else a remark on how it was.
        seconds, speedup: per call, and how many times faster than eager within each round.
        samples: seconds of every round.
        peak_extra_bytes: most that a call holds through PyTorch's allocator; None where memory is taken elsewhere.
        saved_bytes: kept for backward (training mode).
        multiply_adds, moved_bytes: the least that the work needs: a model, from the shapes.
        share: of what the machine's measured peaks allow for that work.
        error: largest error against float64 over the error allowed.
    """

    level: str
    model: str
    part: str
    mode: str
    dtype: str
    batch: int
    threads: int
    peer: str
    axis: str = ""
    value: int = 0
    status: str = MEASURED
    reason: str = ""
    seconds: Spread | None = None
    speedup: Spread | None = None
    samples: tuple[float, ...] = ()
    peak_extra_bytes: int | None = None
    saved_bytes: int | None = None
    multiply_adds: float | None = None
    moved_bytes: float | None = None
    share: float | None = None
    error: float | None = None

    @property
    def case(self) -> tuple[Any, ...]:
        """What rows of one case have in common."""
        return (
            self.level,
            self.model,
            self.part,
            self.mode,
            self.dtype,
            self.batch,
            self.threads,
            self.axis,
            self.value,
        )

    @property
    def key(self) -> tuple[Any, ...]:
        """What the rows of two runs are matched by."""
        return (*self.case, self.peer)

    @property
    def ours(self) -> bool:
        """Kernels of this package ran it."""
        return self.peer.partition("-")[0] in KERNELS

    @property
    def title(self) -> str:
        """The case in words."""
        what = " ".join(word for word in (self.model, self.part) if word)
        swept = f", {self.axis} {self.value}" if self.axis else ""
        several = f", batch {self.batch}" if self.batch > 1 else ""
        return f"{what} {self.mode} {self.dtype}{several}{swept}"


@dataclass(frozen=True)
class Run:
    """Everything a run found.

    Attributes:
        machine: :func:`mvit_kernels.measure.machine`, revision included.
        versions: of the packages that were measured.
        command: what was typed.
        started: ISO 8601, UTC.
        clock: "wall", or "cpu" for CPU seconds of the process.
        peaks: multiply-adds per second by dtype, and "copy" in bytes per second.
        finished: False while the run goes on, or where it was cut short.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    command: str
    started: str
    clock: str = "wall"
    peaks: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    finished: bool = False

    @property
    def where(self) -> str:
        """The machine in a line."""
        m = self.machine
        processor = m.get("gpu") or f"{m.get('cpu')}, {m.get('threads')} threads, SIMD {m.get('simd')}"
        return f"{processor}, torch {m.get('torch')}, revision {m.get('revision')}"


def save(run: Run, path: Path) -> None:
    """Write the JSON; a reader sees the old file or the new one, never a half."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(run)}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(path: Path) -> Run:
    """The run in a file.

    Raises:
        RunError: no such file, not JSON, another program's JSON, another version, or a field that is not what it is.
    """
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RunError(f"{path}: is not a JSON file") from None
    except RecursionError:
        raise RunError(f"{path}: is JSON nested too deep to be a run of pytest benchmarks/") from None
    except ValueError as error:
        raise RunError(f"{path}: is not a whole JSON file: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise RunError(f"{path}: is JSON, but was not written by pytest benchmarks/ --json")
    if found.get("version") != VERSION:
        raise RunError(f"{path}: is of version {found.get('version')!r} of the format, {VERSION} is what this can read")
    read = _Reader(path, found, "")
    return Run(
        machine=read("machine", dict),
        versions=read("versions", dict),
        command=read("command", str),
        started=read("started", str),
        clock=read("clock", str),
        peaks={name: _Reader(path, found["peaks"], "peaks.")(name, float) for name in read("peaks", dict)},
        rows=[_row(path, row, i) for i, row in enumerate(read("rows", list))],
        finished=read("finished", bool),
    )


class _Reader:
    """Values of a JSON object, with an error that names the file, the place and what is right."""

    def __init__(self, path: Path, found: Any, place: str) -> None:
        if not isinstance(found, dict):
            raise RunError(f"{path}: {place.rstrip('.')} is {found!r:.40}, an object is right")
        self.path, self.found, self.place = path, found, place

    def __call__(self, name: str, kind: type) -> Any:
        if name not in self.found:
            raise RunError(f"{self.path}: {self.place}{name} is missing")
        value = self.found[name]
        right = (int, float) if kind is float else kind
        if not isinstance(value, right) or (isinstance(value, bool) and kind is not bool):
            raise RunError(f"{self.path}: {self.place}{name} is {value!r:.40}, {kind.__name__} is right")
        return value

    def optional(self, name: str, read: Callable[[str], Any]) -> Any:
        return None if self.found.get(name) is None else read(name)

    def spread(self, name: str) -> Spread:
        inner = _Reader(self.path, self.found[name], f"{self.place}{name}.")
        return Spread(*(inner(part, float) for part in ("median", "p20", "p80")))


_OPTIONAL = {
    "peak_extra_bytes": int,
    "saved_bytes": int,
    "multiply_adds": float,
    "moved_bytes": float,
    "share": float,
    "error": float,
}


def _row(path: Path, found: Any, i: int) -> Row:
    read = _Reader(path, found, f"rows[{i}].")
    if read("status", str) not in STATUSES:
        raise RunError(f"{path}: rows[{i}].status is {found['status']!r:.40}, one of {', '.join(STATUSES)} is right")
    values: dict[str, Any] = {}
    for f in fields(Row):
        if f.name in ("seconds", "speedup"):
            values[f.name] = read.optional(f.name, read.spread)
        elif f.name == "samples":
            samples = read("samples", list)
            if not all(isinstance(sample, int | float) and not isinstance(sample, bool) for sample in samples):
                raise RunError(f"{path}: rows[{i}].samples holds something that is no number")
            values["samples"] = tuple(samples)
        elif f.name in _OPTIONAL:
            values[f.name] = read.optional(f.name, lambda name, kind=_OPTIONAL[f.name]: read(name, kind))  # type: ignore[misc]
        else:
            values[f.name] = read(f.name, int if f.name in ("batch", "threads", "value") else str)
    if values["status"] == MEASURED and values["seconds"] is None:
        raise RunError(f"{path}: rows[{i}] is measured but has no seconds")
    return Row(**values)
