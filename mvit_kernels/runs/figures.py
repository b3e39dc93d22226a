"""A run's figures, by matplotlib, narrow enough for a phone. SVG, the same bytes for the same run."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..measure import MIB
from .fit import exponent
from .records import MEASURED, Row, Run

WIDTH = 4.2  # inches
COLOURS = {
    "eager": "#8a8f98",
    "sdpa": "#e69f00",
    "flex": "#cc79a7",
    "compile": "#56b4e9",
    "openvino": "#009e73",
    "onnxruntime": "#b8a30a",
    "reference": "#c9ccd1",
    "cpu": "#0b4f9e",
    "cpu-attention": "#6f9fd8",
    "triton": "#7a2f8f",
    "triton-attention": "#b98ac6",
    "cuda": "#d55e00",
    "cuda-attention": "#eea777",
}
"""Of Okabe and Ito, which people with any colour vision tell apart, darkest for this package's backends."""
MARKERS = {"eager": "o", "sdpa": "s", "flex": "D", "compile": "^", "cpu": "P", "triton": "X", "cuda": "*"}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mvit_kernels",
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Figure:
    """One picture.

    Attributes:
        name: short, for a file name.
        title, caption: words for the page; the caption says what there is to see.
        svg: the picture.
    """

    name: str
    title: str
    caption: str
    svg: str


def figures(run: Run) -> list[Figure]:
    """Every figure that the run has rows for."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        return [figure for figure in (*_speedups(run), *_models(run), *_memory(run), *_roofline(run), *_sweeps(run))]


def colour(peer: str) -> str:
    return COLOURS.get(peer) or COLOURS.get(peer.partition("-")[0], "#000000")


def _new(height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _svg(figure: Any) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _measured(run: Run, level: str) -> list[Row]:
    return [row for row in run.rows if row.level == level and row.status == MEASURED]


def _groups(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(getattr(row, name) for name in names), []).append(row)
    return found


def _bars(
    axes: Any, labels: Sequence[str], series: dict[str, dict[str, tuple[float, float, float]]], text: str
) -> None:
    """Horizontal bars, a group per label, from the top; whiskers from low to high."""
    height = 0.8 / len(series)
    for i, (peer, values) in enumerate(series.items()):
        at = [n + (i - (len(series) - 1) / 2) * height for n, label in enumerate(labels) if label in values]
        found = [values[label] for label in labels if label in values]
        whiskers = [[v - low for v, low, _ in found], [high - v for v, _, high in found]]
        bars = axes.barh(
            at, [v for v, _, _ in found], height * 0.92, xerr=whiskers, color=colour(peer), label=peer,
            error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
        )  # fmt: skip
        axes.bar_label(bars, labels=[text.format(v) for v, _, _ in found], padding=3, fontsize=7)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.margins(x=0.18)


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), fontsize=8)


def _label(row: Row) -> str:
    model = row.model.removeprefix("mvit_")
    return f"{model}\n{row.part}" if row.part else model


def _speedups(run: Run) -> Iterable[Figure]:
    for level in ("layer", "block", "op"):
        for (mode, dtype), rows in _groups(_measured(run, level), "mode", "dtype").items():
            others = [row for row in rows if row.peer != "eager" and row.speedup is not None]
            labels = list(dict.fromkeys(_label(row) for row in others))
            series: dict[str, dict[str, tuple[float, float, float]]] = {}
            for row in others:
                assert row.speedup is not None
                values = series.setdefault(row.peer, {})
                values[_label(row)] = (row.speedup.median, row.speedup.p20, row.speedup.p80)
            if not labels:
                continue
            figure, (axes,) = _new(0.7 + len(labels) * (0.14 * len(series) + 0.14))
            _bars(axes, labels, series, "{:.2f}")
            axes.axvline(1, color=COLOURS["eager"], linewidth=1)
            axes.set_xlabel("times as fast as eager")
            _legend(figure, axes)
            yield Figure(
                f"speedup-{level}-{mode}-{dtype}",
                f"{level.capitalize()}s, {mode}, {dtype}",
                "Speed over eager PyTorch in the same run, median of the ratios of each round; whiskers from the 20th "
                "to the 80th percentile. The grey line is eager.",
                _svg(figure),
            )


def _models(run: Run) -> Iterable[Figure]:
    for (mode, dtype), rows in _groups(_measured(run, "model"), "mode", "dtype").items():
        labels = list(dict.fromkeys(row.model.removeprefix("mvit_") for row in rows))
        series: dict[str, dict[str, tuple[float, float, float]]] = {}
        for row in rows:
            assert row.seconds is not None
            found = series.setdefault(row.peer, {})
            found[row.model.removeprefix("mvit_")] = tuple(  # type: ignore[assignment]
                1e3 * s for s in (row.seconds.median, row.seconds.p20, row.seconds.p80)
            )
        figure, (axes,) = _new(0.8 + len(labels) * (0.17 * len(series) + 0.15))
        _bars(axes, labels, series, "{:.0f}")
        axes.set_xlabel("ms per call")
        _legend(figure, axes)
        yield Figure(
            f"models-{mode}-{dtype}",
            f"Whole models, {mode}, {dtype}",
            "Milliseconds on the real clip, shorter is better; whiskers from the 20th to the 80th percentile.",
            _svg(figure),
        )


def _memory(run: Run) -> Iterable[Figure]:
    for name, what, of in (
        ("peak", "Peak extra memory", "peak_extra_bytes"),
        ("saved", "Memory kept for backward", "saved_bytes"),
    ):
        for (mode, dtype), rows in _groups(_measured(run, "layer"), "mode", "dtype").items():
            series: dict[str, dict[str, tuple[float, float, float]]] = {}
            for row in rows:
                size = getattr(row, of)
                if size is not None:
                    series.setdefault(row.peer, {})[_label(row)] = (size / MIB, size / MIB, size / MIB)
            labels = list(dict.fromkeys(label for values in series.values() for label in values))
            if not labels:
                continue
            figure, (axes,) = _new(0.7 + len(labels) * (0.14 * len(series) + 0.14))
            _bars(axes, labels, series, "{:.0f}")
            axes.set_xlabel("MiB")
            _legend(figure, axes)
            yield Figure(
                f"memory-{name}-{mode}-{dtype}",
                f"{what}: layers, {mode}, {dtype}",
                "What a call holds at most over what was there before, its result included, in PyTorch's allocator."
                if name == "peak"
                else "What a forward leaves allocated for its backward, its result not counted.",
                _svg(figure),
            )


def _roofline(run: Run) -> Iterable[Figure]:
    copy = run.peaks.get("copy")
    for (dtype, mode), rows in _groups(
        [row for level in ("op", "layer") for row in _measured(run, level)], "dtype", "mode"
    ).items():
        peak = run.peaks.get(dtype)
        points = [row for row in rows if row.multiply_adds and row.moved_bytes and row.seconds]
        if not peak or not copy or not points:
            continue
        figure, (axes,) = _new(3.4)
        xs = [2 * row.multiply_adds / row.moved_bytes for row in points]  # type: ignore[operator]
        ends = [min(*xs, 1.0) / 1.5, max(*xs, 2 * peak / copy) * 1.5]
        axes.plot(
            [ends[0], 2 * peak / copy, ends[1]],
            [ends[0] * copy / 1e9, 2 * peak / 1e9, 2 * peak / 1e9],
            color="#333333",
            linewidth=1.2,
        )
        for (peer,), theirs in _groups(points, "peer").items():
            axes.plot(
                [2 * r.multiply_adds / r.moved_bytes for r in theirs],  # type: ignore[operator]
                [2e-9 * r.multiply_adds / r.seconds.median for r in theirs],  # type: ignore[operator, union-attr]
                MARKERS.get(peer, "v"),
                color=colour(peer),
                markersize=4.5,
                label=peer,
                linestyle="none",
            )
        axes.set(xscale="log", yscale="log", xlabel="FLOP per byte that must be moved", ylabel="GFLOP/s")
        _legend(figure, axes)
        yield Figure(
            f"roofline-{mode}-{dtype}",
            f"Roofline, {mode}, {dtype}",
            "Each point is an op or a layer. The line is what this machine's measured peaks allow: its copy rate on "
            "the left, its multiply-adds on the right. FLOP and bytes are the least that the work needs (a model, "
            "from the shapes); the rates are measured.",
            _svg(figure),
        )


def _sweeps(run: Run) -> Iterable[Figure]:
    for (axis, mode), rows in _groups(_measured(run, "sweep"), "axis", "mode").items():
        figure, (time, memory) = _new(2.6, 2)
        for (peer,), theirs in _groups(rows, "peer").items():
            for axes, points in ((time, _points(theirs, "seconds")), (memory, _points(theirs, "peak_extra_bytes"))):
                if points:
                    style = {"color": colour(peer), "markersize": 4, "linewidth": 1.2}
                    axes.plot(*zip(*points, strict=True), marker=MARKERS.get(peer, "v"), label=peer, **style)
        for axes, title in ((time, "seconds"), (memory, "peak extra MiB")):
            axes.set(xscale="log", yscale="log", title=title, xlabel=axis)
            ticks = sorted({row.value for row in rows})
            axes.set_xticks(ticks, [str(tick) for tick in ticks], rotation=45 if len(ticks) > 4 else 0)
            axes.minorticks_off()
        _legend(figure, time)
        yield Figure(
            f"sweep-{axis}-{mode}",
            f"Growing {axis}, {mode}",
            "Both axes are logarithmic: a straight line is a power law, its slope the exponent in the table below.",
            _svg(figure),
        )


def _points(rows: Iterable[Row], what: str) -> list[tuple[int, float]]:
    if what == "seconds":
        return sorted((row.value, row.seconds.median) for row in rows if row.seconds is not None)
    return sorted((row.value, row.peak_extra_bytes / MIB) for row in rows if row.peak_extra_bytes)


def exponents(run: Run) -> list[tuple[str, str, str, float | None, float | None]]:
    """(axis, mode, implementation, exponent of the time, exponent of the peak memory) of every sweep."""
    return [
        (axis, mode, peer, exponent(_points(rows, "seconds")), exponent(_points(rows, "peak_extra_bytes")))
        for (axis, mode, peer), rows in _groups(_measured(run, "sweep"), "axis", "mode", "peer").items()
    ]
