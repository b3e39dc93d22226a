"""A run as one HTML page that needs nothing else: no script, no font and no picture from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from html import escape

from ..measure import MIB
from .compare import Comparison
from .figures import Figure, exponents
from .records import MEASURED, STATUSES, Row, Run

STYLE = """
:root { color-scheme: light; --line: #d5d9e0; --quiet: #5b6270; --ours: #eaf2fb; --link: #0b4f9e }
* { box-sizing: border-box }
body {
  margin: 0 auto; padding: 1rem; max-width: 60rem;
  font: 1rem/1.5 system-ui, sans-serif; color: #16191f; background: #fff;
}
h1 { font-size: 1.5rem; line-height: 1.2; margin: .5rem 0 }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
p, li { max-width: 46rem; overflow-wrap: anywhere }
ul { padding-left: 1.2rem }
code {
  font: .85em ui-monospace, monospace; overflow-wrap: anywhere;
  background: #f3f5f8; padding: .1em .3em; border-radius: 3px;
}
nav a { display: inline-block; margin: 0 .9rem .4rem 0; color: var(--link) }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem .9rem; margin: .8rem 0 }
dt { color: var(--quiet) }
dd { margin: 0; overflow-wrap: anywhere }
.figures {
  display: grid; gap: 1rem 2rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr));
}
figure { margin: .5rem 0; break-inside: avoid }
figure img { width: 100%; height: auto; display: block }
.quiet { color: var(--quiet); font-size: .87rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; margin: .4rem 0 1rem }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child, td.text { text-align: left; padding-left: 0 }
td.text { white-space: normal; min-width: 11rem }
tr.ours td { background: var(--ours) }
tr.case td { padding-top: .8rem; font-weight: 600; white-space: normal }
.bad { color: #a4161a; font-weight: 600 }
@media (max-width: 40rem) {
  dl { grid-template-columns: 1fr }
  dd { margin-bottom: .4rem }
  th, td { padding: .2rem .4rem }
  table { font-size: .8rem }
}
@media print {
  body { max-width: none; padding: 0; font-size: 9.5pt }
  nav { display: none }
  .scroll { overflow: visible }
  table { font-size: 7.5pt }
  th, td { padding: .1rem .35rem }
  thead { display: table-header-group }
  tr { break-inside: avoid }
  h2, h3 { break-after: avoid }
  .figures { grid-template-columns: 1fr 1fr }
}
"""

HOW = {
    "of eager": "how many times as fast as eager PyTorch. All implementations of a case run in turn in one process; "
    "the ratio is taken within each round, and its median, 20th and 80th percentile are shown. Seconds vary with what "
    "else a machine does, ratios much less.",
    "peak extra": "the most that a call holds through PyTorch's allocator over what was there before, its result "
    "included; engines of other projects do not use it and have no figure.",
    "kept": "what a forward leaves allocated for its backward, its result not counted.",
    "of peak": "the time that the machine's measured peaks allow for the work, over the measured time. The work, "
    "multiply-adds and bytes, is a model from the shapes: the least that a fused computation needs.",
    "forward, backward, training": "without autograd; the gradients alone; both, for a model with an AdamW step. "
    "Dropout and stochastic depth are off, so that results can be compared.",
    "right first": "every result was compared with float64 before it was timed.",
}

LEVELS = {"model": "Whole models", "layer": "Attention layers", "block": "Blocks", "op": "Ops", "sweep": "Growth"}


SPEED = ("", "of eager", "p20 to p80", "median", "p20 to p80")


def page(run: Run, figures: Sequence[Figure], comparison: Comparison | None = None, before: str = "") -> str:
    """The whole document. `before` names the run that `comparison` is with."""
    parts = [_head(run)]
    if comparison is not None:
        parts.append(_compared(comparison, before))
    present = [level for level in LEVELS if any(row.level == level for row in run.rows)]
    links = "".join(f'<a href="#{level}">{LEVELS[level]}</a>' for level in present)
    parts.append(f'<nav>{links}<a href="#missing">What was not measured</a><a href="#how">How to read it</a></nav>')
    for level in present:
        parts.append(_level(run, level, [f for f in figures if _belongs(f) == level]))
    parts += [_missing(run), _how()]
    title = escape(f"mvit_kernels on {run.machine.get('gpu') or run.machine.get('cpu')}")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{''.join(parts)}</body>\n</html>\n"
    )


def _belongs(figure: Figure) -> str:
    kind, _, rest = figure.name.partition("-")
    return {"speedup": rest.partition("-")[0], "models": "model", "sweep": "sweep"}.get(kind, "layer")


def _head(run: Run) -> str:
    m = run.machine
    peaks = [
        f"{2e-9 * rate:.0f} GFLOP/s {name}" if name != "copy" else f"{1e-9 * rate:.1f} GB/s copied"
        for name, rate in run.peaks.items()
    ]
    facts = {
        "Machine": f"{m.get('gpu') or m.get('cpu')}, {m.get('threads')} threads of {m.get('cores')} cores",
        "SIMD level": f"{m.get('simd')} (torch: {m.get('torch_simd')})",
        "Load at the start": f"{m['load']:.1f}" if isinstance(m.get("load"), int | float) else "not noted",
        "Measured peaks": ", ".join(peaks) or "not measured",
        "Time": {"wall": "wall time", "cpu": "CPU time of the process"}.get(run.clock, run.clock),
        "Date": run.started,
        "Revision": str(m.get("revision")),
        "Versions": ", ".join(f"{name} {number}" for name, number in run.versions.items()),
    }
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    cut = "" if run.finished else '<p class="bad">The run was cut short; what it had measured is here.</p>'
    return (
        f"<h1>mvit_kernels: a run of its benchmarks</h1>{cut}<dl>{rows}<dt>Command</dt>"
        f"<dd><code>{escape(run.command)}</code></dd></dl>{_best(run)}"
    )


def _best(run: Run) -> str:
    """What most readers come for: whole models, in a table of a few lines."""
    rows = [row for row in run.rows if row.level == "model" and row.status == MEASURED]
    if not rows:
        return ""
    return _table(SPEED, _lines(rows, _speed))


def _compared(comparison: Comparison, before: str) -> str:
    items = "".join(
        f'<li class="{"bad" if line.startswith("WORSE") else ""}">{escape(line)}</li>' for line in comparison.lines()
    )
    return f"<h2>Against {escape(before)}</h2><ul>{items}</ul>"


def _level(run: Run, level: str, figures: Sequence[Figure]) -> str:
    parts = [f'<h2 id="{level}">{LEVELS[level]}</h2>']
    for caption in dict.fromkeys(figure.caption for figure in figures):
        pictures = "".join(_figure(figure) for figure in figures if figure.caption == caption)
        parts.append(f'<p class="quiet">{escape(caption)}</p><div class="figures">{pictures}</div>')
    if level == "sweep":
        lines = [
            _cells(f"{axis}, {mode}", peer, *("" if e is None else f"{e:.2f}" for e in (seconds, peak)))
            for axis, mode, peer, seconds, peak in exponents(run)
        ]
        parts += ["<h3>Fitted exponents</h3>", _table(("", "", "time", "peak memory"), lines)]
    rows = [row for row in run.rows if row.level == level and row.status == MEASURED]
    header = (*SPEED, "peak extra", "kept", "of peak")
    parts += ["<h3>Figures</h3>", _table(header, _lines(rows, lambda row: (*_speed(row), *_rest(row))))]
    return "".join(parts)


def _lines(rows: Iterable[Row], cells: Callable[[Row], tuple[str, ...]]) -> list[str]:
    """A heading for each case, a line for each implementation."""
    lines, previous = [], None
    for row in rows:
        if row.case != previous:
            lines.append(f'<tr class="case"><td colspan="8">{escape(row.title)}</td></tr>')
            previous = row.case
        lines.append(_cells(row.peer, *cells(row), kind="ours" if row.ours else ""))
    return lines


def _figure(figure: Figure) -> str:
    data = base64.b64encode(figure.svg.encode()).decode()
    title = escape(figure.title)
    return f'<figure><h3>{title}</h3><img alt="{title}" src="data:image/svg+xml;base64,{data}"></figure>'


def _speed(row: Row) -> tuple[str, ...]:
    s, r = row.seconds, row.speedup
    return (
        "" if r is None else f"{r.median:.2f}x",
        "" if r is None else f"{r.p20:.2f} to {r.p80:.2f}",
        "" if s is None else _seconds(s.median),
        "" if s is None else f"{_seconds(s.p20)} to {_seconds(s.p80)}",
    )


def _rest(row: Row) -> tuple[str, ...]:
    return (
        *("" if size is None else f"{size / MIB:.1f} MiB" for size in (row.peak_extra_bytes, row.saved_bytes)),
        "" if row.share is None else f"{100 * row.share:.0f} %",
    )


def _seconds(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 1
        else f"{seconds * 1e3:.1f} ms"
        if seconds >= 1e-2
        else f"{seconds * 1e3:.2f} ms"
    )


def _missing(run: Run) -> str:
    """Rows without a figure, those of one reason together."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in run.rows:
        if row.status != MEASURED:
            found.setdefault((row.peer, row.status, row.reason), []).append(row)
    lines = []
    for (peer, status, reason), rows in found.items():
        where = rows[0].title if len(rows) == 1 else f"{len(rows)} cases, {rows[0].title} the first"
        cells = (f'<td class="text">{escape(text)}</td>' for text in (peer, f"{status}: {reason}", where))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = _table(("", "why", "where"), lines) if lines else "<p>Every row was measured.</p>"
    return f'<h2 id="missing">What was not measured</h2>{body}'


def _how() -> str:
    statuses = "".join(f"<li>{escape(name)}: {escape(what)}</li>" for name, what in STATUSES.items())
    items = "".join(f"<li><b>{escape(name)}</b>: {escape(words)}</li>" for name, words in HOW.items())
    return f"""<h2 id="how">How to read it</h2><ul>{items}</ul>
<h3>What can become of a row</h3><ul class="quiet">{statuses}</ul>"""


def _cells(*texts: str, kind: str = "") -> str:
    cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
    return f'<tr class="{kind}">{cells}</tr>' if kind else f"<tr>{cells}</tr>"


def _table(header: Iterable[str], lines: Iterable[str]) -> str:
    heads = "".join(f"<th>{escape(text)}</th>" for text in header)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
