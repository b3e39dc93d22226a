"""One row per measured case, and the table of them at the end of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from mvit_kernels.measure import MIB, peak_extra_memory


@dataclass(frozen=True)
class Row:
    """Median seconds (None where timing is switched off) and peak extra bytes of one implementation of one case."""

    case: str
    implementation: str
    seconds: float | None
    peak_bytes: int


ROWS = pytest.StashKey[list[Row]]()


def run_case(
    benchmark: Any, config: pytest.Config, case: str, implementation: str, call: Callable[[], Any], device: torch.device
) -> None:
    """Time `call`, measure its memory, and note both for the table. The caller has checked the result."""

    def timed() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    benchmark.group = case
    peak = peak_extra_memory(call, device=device)
    benchmark.extra_info.update(implementation=implementation, device=device.type, peak_extra_mib=peak / MIB)
    benchmark.pedantic(timed, rounds=config.getoption("--rounds"), warmup_rounds=1)
    seconds = benchmark.stats.stats.median if benchmark.stats else None
    config.stash.setdefault(ROWS, []).append(Row(case, implementation, seconds, peak))


def table(rows: list[Row]) -> str:
    """Median latency, peak extra memory, and both relative to the case's "eager" row."""
    width = max(len(row.case) for row in rows)
    lines = [f"{'case':<{width}}  {'':<10}{'median':>11}{'speed-up':>10}{'peak extra':>14}{'of eager':>10}"]
    eager = {row.case: row for row in rows if row.implementation == "eager"}
    previous = None
    for row in rows:
        base = eager.get(row.case)
        median = "" if row.seconds is None else f"{row.seconds * 1e3:.2f} ms"
        faster = f"{base.seconds / row.seconds:.2f}x" if base and base.seconds and row.seconds else ""
        share = f"{row.peak_bytes / base.peak_bytes:.2f}x" if base and base.peak_bytes else ""
        label = row.case if row.case != previous else ""
        peak = f"{row.peak_bytes / MIB:.1f} MiB"
        lines.append(f"{label:<{width}}  {row.implementation:<10}{median:>11}{faster:>10}{peak:>14}{share:>10}")
        previous = row.case
    return "\n".join(lines)
