"""Rows as text, for the end of a run."""

from __future__ import annotations

from mvit_kernels.measure import MIB
from mvit_kernels.runs import MEASURED, Row

HEADER = ("", "median", "p20-p80", "of eager", "p20-p80", "peak extra", "kept", "of peak")
WIDTHS = (18, 12, 19, 9, 11, 12, 11, 8)


def table(rows: list[Row]) -> list[str]:
    """A heading for each case, a line for each implementation."""
    lines = ["".join(f"{text:>{width}}" if text else " " * width for text, width in zip(HEADER, WIDTHS, strict=True))]
    previous = None
    for row in rows:
        if row.case != previous:
            lines.append(f"{row.level}: {row.title}")
            previous = row.case
        lines.append(_line(row))
    return lines


def _line(row: Row) -> str:
    if row.status != MEASURED or row.seconds is None or row.speedup is None:
        return f"  {row.peer:<18}{row.status}: {row.reason}"
    s, r = row.seconds, row.speedup
    cells = (
        f"  {row.peer}".ljust(WIDTHS[0]),
        f"{s.median * 1e3:.2f} ms",
        f"{s.p20 * 1e3:.2f}-{s.p80 * 1e3:.2f}",
        f"{r.median:.2f}x",
        f"{r.p20:.2f}-{r.p80:.2f}",
        "" if row.peak_extra_bytes is None else f"{row.peak_extra_bytes / MIB:.1f} MiB",
        "" if row.saved_bytes is None else f"{row.saved_bytes / MIB:.1f} MiB",
        "" if row.share is None else f"{100 * row.share:.0f} %",
    )
    return "".join(f"{text:>{width}}" for text, width in zip(cells, WIDTHS, strict=True)).rstrip()
