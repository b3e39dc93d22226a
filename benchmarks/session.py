"""One run of the suite: what was asked for, what was found, and the file that always holds it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import subjects
import torch
from cases import Case
from measuring import Settings
from table import table
from worker import Worker

from mvit_kernels import measure, runs
from mvit_kernels.runs import MEASURED, Comparison, Row, Run

PACKAGES = ("mvit_kernels", "torch", "torchvision", "timm", "triton", "openvino", "onnxruntime", "onnx", "numpy")


@dataclass
class Session:
    """See conftest.py for what the options mean."""

    path: Path
    before: Run | None
    fail_above: float
    command: str
    started: str
    batch: int
    rounds: int | None
    threads: int | None
    device: str | None
    cpu_time: bool
    hurry: bool
    limit: float
    say: Callable[[str], None]
    build: Callable[..., Any] = subjects.build
    comparison: Comparison | None = None
    run: Run = field(init=False)
    _wanted: dict[Case, list[str]] = field(default_factory=dict)
    _rows: dict[tuple[Case, str], Row] = field(default_factory=dict)
    _done: int = 0
    _begun: float = 0.0
    _worker: Worker | None = None

    def __post_init__(self) -> None:
        self.device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if self.cpu_time:
            self.threads = 1
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        self.run = Run(
            machine=measure.machine(self.device) | {"load": os.getloadavg()[0]},
            versions=_versions(),
            command=self.command,
            started=self.started,
            clock="cpu" if self.cpu_time else "wall",
        )

    def expect(self, wanted: dict[Case, list[str]]) -> None:
        """The cases that will be asked for, with their implementations, in order."""
        self._wanted = wanted

    def begin(self) -> None:
        self._begun = time.monotonic()
        settings = Settings(
            batch=self.batch, rounds=self.rounds, device=self.device or "cpu", cpu_time=self.cpu_time, hurry=self.hurry
        )
        self._worker = Worker(settings, self.build, limit=self.limit, threads=torch.get_num_threads())
        rows = sum(map(len, self._wanted.values()))
        self.say(f"\n{len(self._wanted)} cases, {rows} rows, written to {self.path} as they come")
        self.say("measuring this machine's peaks")
        peaks = self._worker.peaks()
        self._worker.use(replace(settings, peaks=peaks))
        self.run = replace(self.run, peaks=peaks)
        runs.save(self.run, self.path)

    def row(self, case: Case, peer: str) -> Row:
        """The row of one implementation; the first one asked for has the whole case measured, in turn."""
        if (case, peer) not in self._rows:
            assert self._worker is not None
            self.say(self._progress(case))
            found = self._worker.rows(case, self._wanted.get(case, [peer]))
            self._rows |= {(case, row.peer): row for row in found}
            self.run.rows.extend(found)
            self._done += 1
            runs.save(self.run, self.path)
        return self._rows[case, peer]

    def end(self) -> None:
        """Stop the child, say that the file is whole, and compare."""
        if self._worker is not None:
            self._worker.stop()
        self.run = replace(self.run, finished=self._done == len(self._wanted))
        runs.save(self.run, self.path)
        if self.before is not None:
            self.comparison = runs.compare(self.run, self.before, self.fail_above)

    def _progress(self, case: Case) -> str:
        gone = time.monotonic() - self._begun
        left = ""
        if self._done >= 3:
            left = f", about {gone / self._done * (len(self._wanted) - self._done) / 60:.0f} min left"
        return f"[{self._done + 1}/{len(self._wanted)}] {gone / 60:.1f} min{left}: {case.name}"

    def summary(self) -> list[str]:
        """What is printed at the end."""
        lines = table(self.run.rows)
        measured = sum(row.status == MEASURED for row in self.run.rows)
        lines += ["", f"{measured} of {len(self.run.rows)} rows measured: {self.path}"]
        lines.append(f"python -m mvit_kernels report {self.path}")
        if self.comparison is not None:
            lines += ["", *self.comparison.lines()]
        return lines


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
