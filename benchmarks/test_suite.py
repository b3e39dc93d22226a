"""Every row is a test: passed where it was measured, skipped with the reason where it can't be, failed where our kernel
is wrong.

The first row of a case has all of them measured, in turn, in one process; the others then take their samples from it.
"""

from __future__ import annotations

from typing import Any

import pytest
from cases import Case
from session import Session

from mvit_kernels.runs import MEASURED


class Replay:
    """A clock that shows pytest-benchmark what was measured."""

    def __init__(self) -> None:
        self.now, self._readings = 0.0, iter(())

    def load(self, samples: tuple[float, ...]) -> None:
        self._readings = iter([step for sample in samples for step in (0.0, sample)])

    def __call__(self) -> float:
        self.now += next(self._readings, 1e-9)
        return self.now


clock = Replay()


@pytest.mark.benchmark(timer=clock)
def test_performance(case: Case, peer: str, suite: Session, benchmark: Any) -> None:
    row = suite.row(case, peer)
    if row.status != MEASURED:
        if row.ours and row.status in ("wrong", "failed", "crashed"):
            pytest.fail(f"{row.status}: {row.reason}", pytrace=False)
        pytest.skip(f"{row.status}: {row.reason}")
    benchmark.group = case.name
    benchmark.extra_info.update(implementation=peer, peak_extra_bytes=row.peak_extra_bytes, share_of_peak=row.share)
    clock.load(row.samples)
    benchmark.pedantic(lambda: None, rounds=len(row.samples), iterations=1)
