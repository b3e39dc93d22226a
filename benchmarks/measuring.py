"""One case: check every implementation, time those that are right in turn, measure memory. Rows, whatever happens."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from cases import KERNELS, Case
from needs import needed_bytes
from subject import Computation, Subject, Timed, Unavailable, check, timed

from mvit_kernels import measure
from mvit_kernels.measure import Spread, Timings
from mvit_kernels.runs import MEASURED, Row

Mark = Callable[[str, str], object]
"""Told the implementation and what is done with it, before it is done: the last word of a process that dies."""

SECONDS = {"op": 0.5, "layer": 1.5, "block": 2.0, "sweep": 4.0, "model": 25.0}
"""What the rounds of a case take together, about, within LEAST and MOST rounds."""
LEAST, MOST = 3, 20


@dataclass(frozen=True)
class Settings:
    """How a case is measured.

    Attributes:
        rounds: timed rounds; None for as many as fit into SECONDS.
        cpu_time: CPU seconds of the process in place of wall time, on one thread.
        peaks: of the machine, as peak.measured gives them.
    """

    batch: int = 1
    rounds: int | None = None
    device: str = "cpu"
    cpu_time: bool = False
    hurry: bool = False
    peaks: dict[str, float] = field(default_factory=dict)


class Failure(Exception):
    """One implementation of a case can't be measured."""

    def __init__(self, peer: str, status: str, reason: str) -> None:
        super().__init__(reason)
        self.peer, self.status, self.reason = peer, status, reason


Build = Callable[[Case, int, torch.device], Subject]


class Measurer:
    """Measures cases; keeps the last subject, for its next mode, and the exact results of it."""

    def __init__(self, settings: Settings, build: Build, mark: Mark = lambda peer, stage: None) -> None:
        self.settings, self.build, self.mark = settings, build, mark
        self.device = torch.device(settings.device)
        self._case: Case | None = None
        self._subject: Subject | None = None
        self._expected: dict[bool, tuple[list, list]] = {}
        self._computations: dict[str, Computation] = {}

    def rows(self, case: Case, peers: Sequence[str]) -> list[Row]:
        """A row per implementation in `peers`, in their order; eager is measured in any case, for the ratios."""
        wanted = list(dict.fromkeys(("eager", *peers)))
        needed, free = needed_bytes(case, self.settings.batch), measure.available_memory(self.device)
        if needed > 0.9 * free:
            reason = f"needs about {needed / 2**30:.1f} GiB with its float64 check, {free / 2**30:.1f} GiB are free"
            return [self._row(case, peer, "too large", reason) for peer in wanted]
        failed: dict[str, Failure] = {}
        try:
            found = {row.peer: row for row in self._measure(case, wanted, failed)}
        except Failure as failure:  # of eager, on which all the others rest
            reason = f"eager, which it is compared with: {failure.reason}"
            failed |= {peer: Failure(peer, failure.status, reason) for peer in wanted if peer not in failed}
            failed["eager"], found = failure, {}
        return [
            found[peer] if peer in found else self._row(case, peer, failed[peer].status, failed[peer].reason)
            for peer in wanted
        ]

    def _measure(self, case: Case, peers: list[str], failed: dict[str, Failure]) -> list[Row]:
        """Rows of those that can be measured; why the others can't goes into `failed`. Raises eager's failure."""
        self.mark("eager", "building")
        subject = self._subject_of(case)
        before_threads = torch.get_num_threads()
        torch.set_num_threads(1 if self.settings.cpu_time else subject.threads or before_threads)
        try:
            calls: dict[str, Timed] = {}
            errors: dict[str, float] = {}
            for peer in peers:
                with _noted(failed):
                    calls[peer], errors[peer] = self._checked(case, subject, peer)
            timings = self._time(case, calls, failed)
            rows = []
            for peer in calls:
                with _noted(failed):
                    rows.append(self._finished(case, subject, peer, calls, timings, errors[peer]))
            return rows
        finally:
            torch.set_num_threads(before_threads)

    def _subject_of(self, case: Case) -> Subject:
        if self._case is None or self._case.subject != case.subject:
            self._subject = self._case = None  # its memory first
            self._expected, self._computations = {}, {}
            gc.collect()
            with _failures("eager"):
                self._subject = self.build(case, self.settings.batch, self.device)
            self._case = case
        assert self._subject is not None
        return self._subject

    def _checked(self, case: Case, subject: Subject, peer: str) -> tuple[Timed, float]:
        """The calls of an implementation that gives right results, and how large its error is."""
        gradients = case.mode != "forward"
        if gradients and peer in subject.forward_only:
            raise Failure(peer, "unavailable", "has no gradients")
        self.mark(peer, "building")
        computation = self._computation(subject, peer)
        self.mark(peer, "checking")
        eager, exact = self._expected_of(subject, gradients)
        with _failures(peer):
            found = eager if peer == "eager" else computation.results(gradients)
            ours = peer.partition("-")[0] in (*KERNELS, "reference")
            dtype = getattr(torch, case.dtype)
            error, problem = check(found, eager, exact, dtype=dtype, ours=ours, foreign=peer in subject.foreign)
        if problem is not None:
            raise Failure(peer, "wrong", problem)
        entry = timed(case.mode, computation, subject.step)
        return (graphed(entry) if self.device.type == "cuda" and case.mode == "forward" else entry), error

    def _computation(self, subject: Subject, peer: str) -> Computation:
        """Built once for all modes of a subject: it may take minutes."""
        if peer not in self._computations:
            with _failures(peer):
                self._computations[peer] = subject.computation(peer)
        return self._computations[peer]

    def _expected_of(self, subject: Subject, gradients: bool) -> tuple[list, list]:
        if gradients not in self._expected:
            with _failures("eager"):
                eager = self._computation(subject, "eager").results(gradients)
                exact = subject.exact().results(gradients)
            self._expected[gradients] = (eager, exact)
        return self._expected[gradients]

    def _time(self, case: Case, calls: dict[str, Timed], failed: dict[str, Failure]) -> Timings:
        """The rounds of all calls; one that fails in the middle leaves `calls`, and the others start again."""
        while True:
            try:
                return self._rounds(case, calls)
            except Failure as failure:
                if failure.peer == "eager":
                    raise
                failed[failure.peer] = failure
                del calls[failure.peer]

    def _rounds(self, case: Case, calls: dict[str, Timed]) -> Timings:
        """As many as there is time for, the first one to see how long they take."""
        running: list[str] = []

        def before(peer: str) -> None:
            running[:] = [peer]
            self.mark(peer, "timing")
            calls[peer].before()

        def some(repeats: int, warmup: int) -> Timings:
            with _failures(lambda: running[0]):
                return measure.time_alternating(
                    {peer: entry.call for peer, entry in calls.items()},
                    repeats=repeats,
                    warmup=warmup,
                    device=self.device,
                    before=before,
                    clock=time.process_time if self.settings.cpu_time else None,
                )

        first = some(1, 1 if case.level == "op" else 0)  # larger ones are warm from their check
        if self.settings.rounds is None:
            each = sum(samples[0] for samples in first.seconds.values())
            limit = SECONDS[case.level] * (0.3 if self.settings.hurry else 1.0)
            repeats = min(max(int(limit / each), LEAST), MOST) - 1
        else:
            repeats = self.settings.rounds - 1
        if not repeats:
            return first
        rest = some(repeats, 0)
        return Timings({peer: first.seconds[peer] + rest.seconds[peer] for peer in calls})

    def _finished(
        self, case: Case, subject: Subject, peer: str, calls: dict[str, Timed], timings: Timings, error: float
    ) -> Row:
        self.mark(peer, "memory")
        seconds = timings.spread(peer)
        multiply_adds, moved = subject.work.of(case.mode)
        row = self._row(
            case,
            peer,
            seconds=seconds,
            speedup=timings.speedup(peer, over="eager"),
            samples=tuple(timings.seconds[peer]),
            multiply_adds=multiply_adds,
            moved_bytes=moved,
            share=share(multiply_adds, moved, seconds, case.dtype, self.settings.peaks),
            error=error,
            reason=calls[peer].remark,
            threads=torch.get_num_threads(),
        )
        if peer in subject.foreign:
            return row
        with _failures(peer):
            calls[peer].before()
            peak = measure.peak_extra_memory(calls[peer].call, device=self.device)
            saved = None
            if case.mode == "training":
                saved = measure.kept_for_backward(self._computation(subject, peer).forward, device=self.device)
        return replace(row, peak_extra_bytes=peak, saved_bytes=saved)

    def _row(self, case: Case, peer: str, status: str = MEASURED, reason: str = "", **figures) -> Row:  # type: ignore[no-untyped-def]
        figures.setdefault("threads", torch.get_num_threads())
        return row_of(case, peer, self.settings.batch, status=status, reason=reason, **figures)


def row_of(case: Case, peer: str, batch: int, **figures) -> Row:  # type: ignore[no-untyped-def]
    """The row of an implementation of a case."""
    return Row(
        level=case.level,
        model=case.model,
        part=case.part,
        mode=case.mode,
        dtype=case.dtype,
        batch=case.value if case.axis == "batch" else batch,
        peer=peer,
        axis=case.axis,
        value=case.value,
        **figures,
    )


def graphed(entry: Timed) -> Timed:
    """As a CUDA graph, without the launches' time on the host; as it is, with a remark, where it can't be captured."""
    try:
        return Timed(entry.before, measure.captured(entry.call), "CUDA graph")
    except Exception as error:  # an op that waits for the host, a library that allocates: any kind of error
        return Timed(entry.before, entry.call, f"no CUDA graph: {one_line(error)}")


def share(multiply_adds: float, moved: float, seconds: Spread, dtype: str, peaks: dict[str, float]) -> float | None:
    """The time that the machine's peaks allow for the work, whichever of the two is longer, over the measured time."""
    if dtype not in peaks or "copy" not in peaks:
        return None
    return max(multiply_adds / peaks[dtype], moved / peaks["copy"]) / seconds.median


@contextmanager
def _noted(failed: dict[str, Failure]) -> Iterator[None]:
    """A :class:`Failure` inside goes into `failed`; eager's goes on."""
    try:
        yield
    except Failure as failure:
        if failure.peer == "eager":
            raise
        failed[failure.peer] = failure


@contextmanager
def _failures(peer: str | Callable[[], str]) -> Iterator[None]:
    """An exception inside as a :class:`Failure` of `peer`, its message in one line."""
    try:
        yield
    except Failure:
        raise
    except Unavailable as error:
        raise Failure(_name(peer), "unavailable", str(error)) from None
    except NotImplementedError as error:  # what the implementation itself refuses: FlexAttention's backward on a CPU
        raise Failure(_name(peer), "unavailable", one_line(error)) from None
    except Exception as error:  # another project's code may fail in any way; the row says how
        raise Failure(_name(peer), "too large" if _out_of_memory(error) else "failed", one_line(error)) from None


def _out_of_memory(error: Exception) -> bool:
    """PyTorch has a type of its own for a GPU's memory alone."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _name(peer: str | Callable[[], str]) -> str:
    return peer if isinstance(peer, str) else peer()


def one_line(error: BaseException) -> str:
    """The exception's type and the first line of what it says that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
