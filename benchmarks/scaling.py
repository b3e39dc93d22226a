"""How the cost of a model's attention layers grows with frames, crop, batch and threads.

    python benchmarks/scaling.py --svg docs/scaling_cpu.svg

Each line: one forward of all attention layers of MViTv2-S in float32 on random tokens. Beside the seconds stand the
tokens and the scores (Nq x Nk over heads) of the layers, which the seconds should grow with, and the peak extra memory
of the largest layer, which should grow with the tokens and not with the scores.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from mvit_kernels import measure, models, use_backend

MODEL = "mvit_v2_s_16x4"
AXES: dict[str, list[int]] = {
    "frames": [8, 16, 32, 64],
    "crop": [112, 160, 224, 320],
    "batch": [1, 2, 4, 8],
    "threads": [1, 2, 4, 8, 16, 32],
}
BASE = {"frames": 16, "crop": 224, "batch": 1}


@dataclass(frozen=True)
class Point:
    value: int
    seconds: float
    tokens: int
    scores: int
    peak_bytes: int


def measured(frames: int, crop: int, batch: int, value: int, repeats: int) -> Point:
    options = {"num_frames": frames, "crop_size": crop}
    torch.manual_seed(0)
    model = models.create(MODEL, **options).eval()
    shapes = models.layer_shapes(MODEL, **options)
    calls = []
    for shape, block in zip(shapes, model.blocks, strict=True):
        x = torch.randn(batch, shape.num_tokens, shape.dim)
        calls.append(lambda layer=block.attn, x=x, grid=shape.grid: layer(x, grid)[0])

    def all_layers() -> None:
        for call in calls:
            call()

    with torch.inference_mode(), use_backend("cpu"):
        timings = measure.time_alternating({"layers": all_layers}, repeats=repeats, warmup=1)
        peak = max(measure.peak_extra_memory(call) for call in calls[:2])
    tokens, scores = sum(shape.num_tokens for shape in shapes), sum(shape.scores for shape in shapes)
    return Point(value, min(timings.seconds["layers"]), batch * tokens, batch * scores, peak)


def measured_axis(axis: str, repeats: int) -> list[Point]:
    threads, points = torch.get_num_threads(), []
    for value in AXES[axis]:
        if axis == "threads":
            if value > threads:
                break
            torch.set_num_threads(value)
        settings = {**BASE, axis: value} if axis != "threads" else BASE
        points.append(measured(settings["frames"], settings["crop"], settings["batch"], value, repeats))
        p = points[-1]
        print(
            f"{axis:8}{value:5}  {p.seconds:7.3f} s  {p.tokens / 1e3:8.0f}k tokens  {p.scores / 1e6:8.0f}M scores  "
            f"{p.seconds / p.scores * 1e9:6.2f} ns per score  {p.peak_bytes / measure.MIB:7.1f} MiB peak  "
            f"{p.peak_bytes / p.tokens:6.0f} B per token",
            flush=True,
        )
    torch.set_num_threads(threads)
    return points


def plot(axes: dict[str, list[Point]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mvit_kernels"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(axes), figsize=(3 * len(axes), 2.6), layout="constrained")
    for panel, (axis, points) in zip(panels, axes.items(), strict=True):
        values = [p.value for p in points]
        panel.plot(values, [p.seconds for p in points], "o-", label="seconds")
        panel.set(xlabel=axis, xticks=values, ylim=(0, None))
        memory = panel.twinx()
        memory.plot(values, [p.peak_bytes / measure.MIB for p in points], "s--", color="tab:orange", label="MiB")
        memory.set(ylim=(0, None))
        if panel is panels[0]:
            panel.set(ylabel="seconds (solid)")
        if panel is panels[-1]:
            memory.set(ylabel="peak extra MiB (dashed)")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", action="append", choices=tuple(AXES), help="measure this one; may be repeated")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each point; the fastest counts")
    parser.add_argument("--svg", type=Path, help="draw the curves into this file (needs matplotlib)")
    options = parser.parse_args()
    machine = measure.machine()
    print(f"{machine['cpu']}, {machine['threads']} threads, SIMD {machine['simd']}, torch {machine['torch']}, {MODEL}")
    axes = {axis: measured_axis(axis, options.repeats) for axis in options.axis or AXES}
    if options.svg:
        plot(axes, options.svg)


if __name__ == "__main__":
    main()
