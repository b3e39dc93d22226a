"""`bench --plot`: latency and peak memory, before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..measure import MIB
from .bench_output import NAMES
from .bench_result import Result

COLOURS = {"eager": "#9aa5b1", "mvit_kernels": "#2a6f97"}


def formats() -> list[str]:
    """File suffixes that :func:`draw` can write."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    return [f".{name}" for name in FigureCanvasAgg.get_supported_filetypes()]


def draw(path: Path, setting: dict[str, Any], results: list[Result]) -> None:
    """Bar charts side by side, a pair of bars per model; whiskers from p20 to p80. The format follows the suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 + 2 * len(results), 4), layout="constrained")
    FigureCanvasAgg(figure)
    latency, memory = figure.subplots(1, 2)
    for i, name in enumerate(NAMES):
        at = [n + 0.4 * (i - 0.5) for n in range(len(results))]
        spreads = [result.timings.spread(name) for result in results]
        whiskers = [[(s.median - s.p20) * 1e3 for s in spreads], [(s.p80 - s.median) * 1e3 for s in spreads]]
        style = {"width": 0.38, "label": name, "color": COLOURS[name]}
        bars = latency.bar(at, [s.median * 1e3 for s in spreads], yerr=whiskers, capsize=3, **style)
        latency.bar_label(bars, fmt="%.0f")
        latency.set_title("latency, median (ms)")
        bars = memory.bar(at, [result.memory[name] / MIB for result in results], **style)
        memory.bar_label(bars, fmt="%.0f")
        memory.set_title("peak extra memory (MiB)")
    for axes in (latency, memory):
        axes.set_xticks(range(len(results)), [result.workload.name.rpartition(":")[2] for result in results])
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*latency.get_legend_handles_labels(), loc="outside lower center", ncols=len(NAMES), frameon=False)
    machine = setting["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    figure.suptitle(
        f"{where}, torch {machine['torch']}, {setting['dtype']}, batch {setting['batch']}", fontsize="small"
    )
    figure.savefig(path, dpi=150)
