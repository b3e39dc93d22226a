"""Has a run become slower, or hungrier, than an earlier one?

Seconds differ from day to day with what else a machine does, so they are not compared. Speed-ups over eager are: both
sides of one were measured in turn. Bytes hardly vary and are compared as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .records import MEASURED, Row, Run


@dataclass(frozen=True)
class Change:
    """One figure of one row. `factor` is above 1 where it became worse."""

    row: Row
    what: str
    before: float
    after: float
    factor: float

    def __str__(self) -> str:
        return f"{self.row.title}, {self.row.peer}: {self.what} {self.factor:.2f} times worse"


@dataclass
class Comparison:
    """Rows of two runs, matched.

    Attributes:
        regressions: worse by more than the limit, and not by noise.
        noise: worse by more than the limit, but the ratios of the rounds overlap.
        broken: measured before and not any more, with the reason.
        missing: measured before and not looked at now.
        compared: how many rows were matched.
        remarks: what a reader should know of the two runs.
    """

    regressions: list[Change] = field(default_factory=list)
    better: list[Change] = field(default_factory=list)
    noise: list[Change] = field(default_factory=list)
    broken: list[Row] = field(default_factory=list)
    missing: list[Row] = field(default_factory=list)
    compared: int = 0
    remarks: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return bool(self.regressions or self.broken)

    def lines(self) -> list[str]:
        """The verdict, one finding a line."""
        return [
            *self.remarks,
            *(f"WORSE {change}" for change in self.regressions),
            *(f"WORSE {row.title}, {row.peer}: was measured, now {row.status}: {row.reason}" for row in self.broken),
            *(f"noise {change}, but the rounds overlap" for change in self.noise),
            *(f"better {c.row.title}, {c.row.peer}: {c.what} {1 / c.factor:.2f} times better" for c in self.better),
            f"{self.compared} rows compared, {len(self.regressions) + len(self.broken)} worse, {len(self.better)} "
            f"better, {len(self.noise)} within noise; {len(self.missing)} of the other run were not measured now",
        ]


def compare(now: Run, before: Run, limit: float) -> Comparison:
    """What became worse by more than `limit` (1.10: a tenth), of this package's kernels.

    A speed-up counts as worse only where its p20 to p80 lies below the earlier one's p20 to p80.
    """
    found = Comparison()
    for name in ("cpu", "gpu", "threads", "simd", "torch"):
        if now.machine.get(name) != before.machine.get(name):
            found.remarks.append(
                f"{name} is {now.machine.get(name)}, was {before.machine.get(name)}: ratios are compared all the same"
            )
    if now.clock != before.clock:
        found.remarks.append(f"clock is {now.clock} and was {before.clock}: ratios are compared all the same")
    if not before.finished:
        found.remarks.append("the other run was cut short")
    earlier = {row.key: row for row in before.rows if row.ours and row.status == MEASURED}
    current = {row.key: row for row in now.rows}
    for key, old in earlier.items():
        new = current.get(key)
        if new is None:
            found.missing.append(old)
            continue
        found.compared += 1
        if new.status != MEASURED:
            found.broken.append(new)
            continue
        _speed(found, new, old, limit)
        _bytes(found, new, "peak extra memory", new.peak_extra_bytes, old.peak_extra_bytes, limit)
        _bytes(found, new, "memory kept for backward", new.saved_bytes, old.saved_bytes, limit)
    return found


def _speed(found: Comparison, new: Row, old: Row, limit: float) -> None:
    if new.speedup is None or old.speedup is None:
        return
    factor = old.speedup.median / new.speedup.median
    change = Change(new, "speed-up over eager", old.speedup.median, new.speedup.median, factor)
    if factor > limit:
        overlap = new.speedup.p80 >= old.speedup.p20
        (found.noise if overlap else found.regressions).append(change)
    elif factor < 1 / limit and new.speedup.p20 > old.speedup.p80:
        found.better.append(change)


def _bytes(found: Comparison, row: Row, what: str, new: int | None, old: int | None, limit: float) -> None:
    if not new or not old:
        return
    change = Change(row, what, old, new, new / old)
    if change.factor > limit:
        found.regressions.append(change)
    elif change.factor < 1 / limit:
        found.better.append(change)
