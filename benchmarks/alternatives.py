"""torchvision's whole models: accelerated, and every way a user has today to run them faster, in turn in one run.

    python benchmarks/alternatives.py                      # mvit_v1_b and mvit_v2_s in float32
    python benchmarks/alternatives.py --dtype bfloat16     # autocast for PyTorch, bf16 inference for OpenVINO

Every implementation's logits are first compared with eager's in float32; a wrong one is not timed. One that is not
installed, or fails, is a row with the reason. Ratios are medians of the ratios within each round.

With --cpu-time everything runs on one thread and the process's CPU seconds are taken, for a machine that is busy with
other things as well.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import mvit_kernels
from mvit_kernels import measure

Call = Callable[[], Tensor]
MODELS = ("mvit_v1_b", "mvit_v2_s")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}  # of the logits' scale: a gate against wrong results, no numerics test


def accelerated(model: nn.Module, x: Tensor, scope: str) -> Call:
    model = copy.deepcopy(model)
    report = mvit_kernels.accelerate(model, scope=scope)
    if report.left_alone:
        raise RuntimeError(f"left alone: {report.left_alone[0]}")
    return lambda: model(x)


def inductor(model: nn.Module, x: Tensor) -> Call:
    import torch._inductor.config

    torch._inductor.config.freezing = True
    compiled = torch.compile(copy.deepcopy(model))
    compiled(x)
    return lambda: compiled(x)


def openvino(model: nn.Module, x: Tensor, dtype: str) -> Call:
    import openvino as ov

    with torch.autocast("cpu", enabled=False):
        converted = ov.convert_model(copy.deepcopy(model), example_input=x)
    settings = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()
    inputs = [x.numpy()]
    return lambda: torch.from_numpy(next(iter(request.infer(inputs).values())))


def implementations(model: nn.Module, x: Tensor, dtype: str) -> dict[str, Callable[[], Call]]:
    return {
        "eager": lambda: lambda: model(x),
        "inductor, frozen": lambda: inductor(model, x),
        "OpenVINO": lambda: openvino(model, x, dtype),
        "mvit_kernels, attention": lambda: accelerated(model, x, "attention"),
        "mvit_kernels, block": lambda: accelerated(model, x, "block"),
    }


def build(makers: dict[str, Callable[[], Call]], expected: Tensor, tolerance: float) -> tuple[dict[str, Call], dict]:
    """The calls whose result is right, and the reasons of the others."""
    calls: dict[str, Call] = {}
    reasons: dict[str, str] = {}
    for name, make in makers.items():
        try:
            call = make()
            error = float((call().double() - expected).abs().max() / expected.abs().max())
        except Exception as problem:  # a peer may fail in any way; the row says how
            reasons[name] = f"{type(problem).__name__}: {str(problem).splitlines()[0][:90]}"
            continue
        if error <= tolerance:
            calls[name] = call
        else:
            reasons[name] = f"not timed, the logits are off by {error:.1e} of their scale"
    return calls, reasons


def cpu_seconds(calls: dict[str, Call], rounds: int) -> measure.Timings:
    """As `measure.time_alternating`, in CPU seconds of the whole process."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    return measure.Timings(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, help="may be repeated (default: both)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--without", action="append", default=[], metavar="NAME", help="leave an implementation out")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of one thread")
    options = parser.parse_args()
    if options.cpu_time:
        options.threads = 1
    torch.set_num_threads(options.threads)
    machine: dict[str, Any] = measure.machine("cpu")
    load = os.getloadavg()[0]
    where = f"{machine['cpu']}, {options.threads} threads, SIMD {machine['simd']}"
    print(f"{where}, torch {machine['torch']}, load {load:.1f}")
    for name in options.model or MODELS:
        torch.manual_seed(0)
        model = getattr(torchvision.models.video, name)().eval()
        x = torch.randn(options.batch, 3, 16, 224, 224, generator=torch.Generator().manual_seed(1))
        half = options.dtype == "bfloat16"
        with torch.inference_mode():
            expected = model(x).double()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            makers = implementations(model, x, options.dtype)
            makers = {key: make for key, make in makers.items() if key not in options.without}
            calls, reasons = build(makers, expected, TOLERANCE[options.dtype])
            if options.cpu_time:
                timings = cpu_seconds(calls, options.rounds)
            else:
                timings = measure.time_alternating(calls, repeats=options.rounds, warmup=1)
        print(f"{name}, {options.dtype}, batch {options.batch}")
        for key in makers:
            if key in reasons:
                print(f"  {key:<26}{reasons[key]}")
                continue
            ratio = timings.speedup(key, over="eager").median
            print(f"  {key:<26}{timings.spread(key).median:8.3f} s   {ratio:5.2f}x of eager", flush=True)


if __name__ == "__main__":
    main()
