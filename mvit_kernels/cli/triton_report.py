"""`triton-report`: what the compiler makes of the Triton kernels, for GPUs that need not be there."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec

from ..models import layer_shapes, list_models
from ..triton_kernels import matrix, traffic
from .options import DTYPES, UsageError

ARCHES = ("sm80", "sm90", "sm100", "sm120", "gfx9")


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "triton-report",
        help="registers, spills, shared memory and instructions of the Triton kernels, compiled for any GPU",
        description="Compile the Triton kernels that published models need and print what the compiler says. "
        "Needs no GPU; the whole matrix takes an hour of one core, so choose.",
    )
    parser.add_argument("--arch", choices=ARCHES, nargs="+", default=list(ARCHES), help="default: all")
    parser.add_argument(
        "--model", choices=list_models(), nargs="+", default=list(matrix.MODELS), metavar="NAME", help="default: all"
    )
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES)[:3], nargs="+", default=["float16", "bfloat16"], help="default: both halves"
    )
    parser.add_argument("--op", choices=matrix.OPS, nargs="+", default=list(matrix.OPS), help="default: all")
    parser.add_argument("--block", type=int, metavar="N", help="one block of the model alone")
    parser.add_argument(
        "--bytes", action="store_true", help="instead, a model of the bytes moved, half precision, one sample"
    )
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
    dtypes = [DTYPES[name] for name in args.dtype]
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
