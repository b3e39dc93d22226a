"""A process that measures, so that one that dies, by a signal for one, or hangs, takes no more than a row with it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from cases import Case
from measuring import Measurer, Settings, row_of

from mvit_kernels.runs import Row

START = 300.0
"""Seconds in which the child has imported what it needs, however busy the machine."""


@dataclass(frozen=True)
class Ended:
    """How a process ended while it worked on an implementation."""

    status: str
    reason: str


class Worker:
    """Measures cases in a child process, and in a new one after the last has died.

    Args:
        settings: of every case.
        build: makes a case's subject; a function that the child can import.
        limit: seconds that an implementation may take for one step, compilation for one.
        threads: of torch, in the child.
    """

    def __init__(self, settings: Settings, build: Callable[..., Any], *, limit: float, threads: int) -> None:
        self.settings, self.build, self.limit, self.threads = settings, build, limit, threads
        self._process: Any = None
        self._pipe: Connection | None = None
        self._log = tempfile.NamedTemporaryFile(prefix="mvit_kernels_bench_", suffix=".log")  # noqa: SIM115

    def rows(
        self, case: Case, peers: Sequence[str], told: Callable[[str, str], object] = lambda peer, stage: None
    ) -> list[Row]:
        """As :meth:`Measurer.rows`. An implementation that ends the process, or takes too long, is a row of its own."""
        lost: dict[str, Row] = {}
        while True:
            left = [peer for peer in peers if peer not in lost]
            found, running, ended = self._ask(case, left, told)
            if ended is None:
                by_peer = {row.peer: row for row in found} | lost
                return [by_peer[peer] for peer in dict.fromkeys(("eager", *peers))]
            lost[running] = self._lost(case, running, ended)
            if running == "eager":
                reason = f"eager, which it is compared with: {ended.reason}"
                rows = {peer: self._lost(case, peer, Ended(ended.status, reason)) for peer in left} | lost
                return [rows[peer] for peer in dict.fromkeys(("eager", *peers))]

    def _lost(self, case: Case, peer: str, ended: Ended) -> Row:
        return row_of(case, peer, self.settings.batch, threads=self.threads, status=ended.status, reason=ended.reason)

    def peaks(self) -> dict[str, float]:
        """Measured in the child too: a machine that can't do it has none."""
        self._start()
        assert self._pipe is not None
        self._pipe.send(("peaks", None))
        try:
            return self._pipe.recv()[1] if self._pipe.poll(self.limit) else {}
        except (EOFError, OSError):
            self.stop()
            return {}

    def use(self, settings: Settings) -> None:
        """Other settings from now on."""
        self.settings = settings
        if self._pipe is not None:
            self._pipe.send(("settings", settings))

    def stop(self) -> None:
        """End the child."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = self._pipe = None

    def _start(self) -> None:
        if self._process is not None and self._process.is_alive():
            return
        self.stop()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._log.truncate(0)
        arguments = (theirs, self.settings, self.build, self.threads, self._log.name, list(sys.path))
        self._process = context.Process(target=serve, args=arguments, daemon=False)
        self._process.start()
        theirs.close()  # or the end of the child is not the end of the pipe
        try:
            if self._pipe.poll(START):
                self._pipe.recv()
        except (EOFError, OSError):
            return  # the first question to it says how it ended

    def _ask(
        self, case: Case, peers: Sequence[str], told: Callable[[str, str], object]
    ) -> tuple[list[Row], str, Ended | None]:
        """The rows; or who was at work, and how it ended."""
        self._start()
        assert self._pipe is not None
        running, stage = "eager", "building"
        try:
            self._pipe.send(("case", (case, list(peers))))
            while True:
                if not self._pipe.poll(self.limit):
                    self.stop()
                    return [], running, Ended("too slow", f"{stage} took longer than {self.limit:.0f} s")
                kind, message = self._pipe.recv()
                if kind == "rows":
                    return message, "", None
                if kind == "error":
                    raise RuntimeError(f"benchmarks: {case.name}: {message}")
                running, stage = message
                told(running, stage)
        except (EOFError, OSError):
            return [], running, Ended("crashed", f"{self._how_it_died()} while {stage}")

    def _how_it_died(self) -> str:
        self._process.join(30)
        code = self._process.exitcode
        last = [line.strip() for line in Path(self._log.name).read_text(errors="replace").splitlines() if line.strip()]
        self.stop()
        words = f" ({last[-1][:120]})" if last else ""
        if code is None:
            return f"the process stopped answering{words}"
        if code < 0:
            killer = ", for want of memory perhaps" if -code == signal.SIGKILL else ""
            return f"the process was killed by {signal.Signals(-code).name}{killer}{words}"
        return f"the process ended with status {code}{words}"


def serve(
    pipe: Connection, settings: Settings, build: Callable[..., Any], threads: int, log: str, path: list[str]
) -> None:
    """The child: measure what is asked for until the parent is gone. What libraries print goes into `log`."""
    _die_with_parent()
    sys.path[:] = path
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    torch.set_num_threads(threads)
    pipe.send(("ready", None))
    measurer = Measurer(settings, build, mark=lambda peer, stage: pipe.send(("mark", (peer, stage))))
    while True:
        try:
            kind, message = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        if kind == "settings":
            measurer.settings = message
        elif kind == "peaks":
            import peak

            pipe.send(("peaks", peak.measured(measurer.device)))
        else:
            try:
                pipe.send(("rows", measurer.rows(*message)))
            except Exception as error:  # ours to mend, and for the parent to show
                import traceback

                traceback.print_exc()
                pipe.send(("error", f"{type(error).__name__}: {error}"))


def _die_with_parent() -> None:
    """On Linux a child of a parent that is killed is killed too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
