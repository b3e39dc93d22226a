"""`bench`'s figures as a table and as JSON."""

from __future__ import annotations

from typing import Any

from ..measure import MIB, Spread
from .bench_result import EAGER, FUSED, Result

NAMES = (EAGER, FUSED)


def text(setting: dict[str, Any], results: list[Result]) -> str:
    """What `bench` prints."""
    machine = setting["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['threads']} threads"
    lines = [
        f"{where}, torch {machine['torch']}, mvit_kernels SIMD level {machine['simd']}",
        f"{setting['clip']}, {setting['dtype']}, batch {setting['batch']}, weights: {setting['weights']}, "
        f"{setting['repeats']} runs of each in turn, scope {setting['scope']}",
    ]
    return "\n\n".join(["\n".join(lines), *("\n".join(_model(setting, result)) for result in results)])


def _model(setting: dict[str, Any], result: Result) -> list[str]:
    spreads = [result.timings.spread(name) for name in NAMES]
    memory = [result.memory[name] for name in NAMES]
    speedup, saving = result.speedup, memory[0] / memory[1] if memory[1] else float("inf")
    rows = [
        ("", *NAMES, "ratio"),
        (
            "latency, median",
            *(f"{s.median * 1e3:.1f} ms" for s in spreads),
            f"{speedup.median:.2f} ({_range(speedup)})",
        ),
        ("latency, p20-p80", *(_range(s, 1e3, 1) + " ms" for s in spreads), ""),
        ("clips/s", *(f"{setting['batch'] / s.median:.2f}" for s in spreads), ""),
        ("peak extra memory", *(f"{bytes_ / MIB:.1f} MiB" for bytes_ in memory), f"{saving:.2f}"),
    ]
    if result.verdict is not None:
        errors = (result.verdict.eager_error, result.verdict.error)
        rows.append(("max error to float64", *(f"{error.max:.2e}" for error in errors), ""))
        rows.append(("rms error to float64", *(f"{error.rms:.2e}" for error in errors), ""))
    t, h, w = result.workload.size
    d = result.difference
    return [
        f"{result.workload.name}, {t}x{h}x{w}",
        *(f"  {label:<22}{eager:>18}{fused:>18}{note:>22}".rstrip() for label, eager, fused, note in rows),
        f"  logits differ by {d.max:.2e} at most ({d.relative_max:.1e} of scale), rms {d.rms:.2e} "
        f"({d.relative_rms:.1e} of scale)",
        *(f"  {line}" for line in _top(result)),
        *(f"  {line}" for line in result.layers),
        *(f"  left alone: {line}" for line in result.left_alone),
        *(f"  no backend {name}: {reason}" for name, reason in setting["missing_backends"].items()),
        f"  {_verdict(result)}",
    ]


def _range(spread: Spread, factor: float = 1.0, digits: int = 2) -> str:
    return f"{spread.p20 * factor:.{digits}f}-{spread.p80 * factor:.{digits}f}"


def _top(result: Result) -> list[str]:
    """Agreement of the five largest logits over the batch; names of the first sample's where there are any."""
    samples = range(len(result.logits["eager"]))
    tops = [(result.top("eager", i), result.top("mvit_kernels", i)) for i in samples]
    agreeing = sum(len(set(a) & set(b)) for a, b in tops)
    ordered = ", in the same order" if all(a == b for a, b in tops) else ""
    lines = [f"top-5: {agreeing} of {sum(len(a) for a, _ in tops)} the same{ordered}"]
    if result.workload.categories is not None:
        names = [result.workload.categories[i] for i in tops[0][1]]
        lines.append(f"top-5 of the first clip (random weights, so the names mean nothing): {', '.join(names)}")
    return lines


def _verdict(result: Result) -> str:
    if result.verdict is None:
        return "check left out"
    word = "passed" if result.passed else "FAILED, do not trust the figures above"
    return f"check {word}: max error {result.verdict.error.max:.2e}, {result.verdict.max_bound:.2e} allowed"


def as_json(setting: dict[str, Any], results: list[Result]) -> dict[str, Any]:
    """Every figure and sample: seconds, bytes, absolute differences."""
    return {**setting, "models": [_model_json(result) for result in results]}


def _model_json(result: Result) -> dict[str, Any]:
    return {
        "name": result.workload.name,
        "size": list(result.workload.size),
        "latency_s": {
            name: {**vars(result.timings.spread(name)), "samples": result.timings.seconds[name]} for name in NAMES
        },
        "speedup": vars(result.speedup),
        "peak_extra_memory_bytes": result.memory,
        "difference": vars(result.difference),
        "top5": {name: [result.top(name, i) for i in range(len(result.logits[name]))] for name in NAMES},
        "layers": result.layers,
        "left_alone": result.left_alone,
        "check": None
        if result.verdict is None
        else {
            "passed": result.passed,
            "error": vars(result.verdict.error),
            "eager_error": vars(result.verdict.eager_error),
            "max_bound": result.verdict.max_bound,
        },
    }
