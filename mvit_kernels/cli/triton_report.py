"""`triton-report`: what the compiler makes of the Triton kernels, for GPUs that need not be there."""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.util import find_spec
from multiprocessing import get_context

from ..models import layer_shapes, list_models
from ..triton_kernels import matrix, traffic
from .options import DTYPES, UsageError, at_least

ARCHES = ("sm80", "sm90", "sm100", "sm120", "gfx9")


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "triton-report",
        help="registers, spills, shared memory and instructions of the Triton kernels, compiled for any GPU",
        description="Compile the Triton kernels that published models need and print what the compiler says. "
        "Needs no GPU.",
    )
    parser.add_argument("--arch", choices=ARCHES, nargs="+", default=list(ARCHES), help="default: all")
    parser.add_argument(
        "--model", choices=list_models(), nargs="+", default=list(matrix.MODELS), metavar="NAME", help="default: all"
    )
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES)[:3], nargs="+", help="default: float16 and bfloat16, with --all float32 too"
    )
    parser.add_argument("--op", choices=matrix.OPS, nargs="+", default=list(matrix.OPS), help="default: all")
    parser.add_argument("--block", type=int, metavar="N", help="one block of the model alone")
    parser.add_argument(
        "--bytes", action="store_true", help="instead, a model of the bytes moved, half precision, one sample"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="every kernel that any published model needs, in short; status 1 where one spills or lacks what it must "
        "have. Some 2300 kernels, an hour of one core",
    )
    parser.add_argument("--jobs", type=at_least(1), default=os.cpu_count(), metavar="N", help="with --all: processes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.bytes:
        for model in args.model:
            print(f"{model}: MB of one sample, half precision; a model, not measured")
            for row in (traffic.HEADER, *traffic.table(matrix.distinct(layer_shapes(model)))):
                print(" | ".join(row))
        return 0
    if find_spec("triton") is None:
        raise UsageError("triton-report: triton is not installed, pip install triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise UsageError("triton-report: TRITON_INTERPRET=1 is set, the interpreter compiles nothing: unset it")
    if args.all:
        return _all(args)
    dtypes = [DTYPES[name] for name in args.dtype or ("float16", "bfloat16")]
    if args.block is None:
        chosen = matrix.cases(args.model, dtypes)
    else:
        layers = [layer for model in args.model for layer in layer_shapes(model) if layer.block == args.block]
        if not layers:
            raise UsageError(f"--block {args.block}: no model chosen has that block")
        chosen = matrix.cases_of(matrix.distinct(layers), dtypes)
    chosen = [case for case in chosen if case.op in args.op]
    print(" | ".join(matrix.HEADER))
    for row in matrix.table(args.arch, chosen):
        print(" | ".join(row), flush=True)
    return 0


def _all(args: argparse.Namespace) -> int:
    found = []
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        parts = {
            pool.submit(matrix.summarise, arch, DTYPES[dtype], list_models()): (arch, dtype)
            for dtype in args.dtype or tuple(DTYPES)[:3]
            for arch in args.arch
        }
        for done in as_completed(parts):
            found += done.result()
            print(*parts[done], "compiled", file=sys.stderr, flush=True)
    summaries = matrix.merged(found)
    for row in (matrix.SUMMARY_HEADER, *(summary.row() for summary in summaries)):
        print(" | ".join(row))
    faults = [fault for summary in summaries for fault in summary.faults]
    for fault in faults:
        print(fault)
    print(f"{sum(summary.count for summary in summaries)} kernels, {len(faults)} faults")
    return 1 if faults else 0
