"""`tune`: measure the launches of the Triton kernels on this GPU and keep the fastest."""

from __future__ import annotations

import argparse

import torch

from .. import backends
from ..models import layer_shapes, list_models
from ..triton_kernels import matrix, tuned, tuning
from .options import DTYPES, UsageError, at_least


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "tune",
        help="measure the launches of the Triton kernels on this GPU and keep the fastest",
        description=f"Measure, then write the table {tuned.path()}, which the package uses from then on.",
    )
    parser.add_argument("--model", choices=list_models(), default="mvit_v2_s_16x4", metavar="NAME")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--batch", type=at_least(1), default=8, metavar="N")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    missing = backends.get("triton").unavailable()
    if missing is not None:
        raise UsageError(f"tune: {missing}")
    from ..triton_kernels.device import device_family

    arch, dtype = device_family(torch.device("cuda")), DTYPES[args.dtype]
    kind = "float32" if args.dtype == "float32" else "half"
    layers = {(layer.head_dim, layer.num_kv): layer for layer in matrix.distinct(layer_shapes(args.model))}
    # The table's first fitting row is taken, so the rows go from few keys to many.
    found = []
    for (head_dim, keys), layer in sorted(layers.items()):
        timer = matrix.timer(layer, dtype, args.batch)
        for kernel in tuning.KERNELS:
            result = tuning.tune(tuning.Key(arch, kernel, kind, head_dim, keys), timer)
            if result is None:
                print(f"{kernel} D {head_dim} Nk {keys}: no candidate runs on this GPU")
                continue
            print(f"{kernel} D {head_dim} Nk {keys}: {result.launch}, {1e6 * result.seconds:.1f} us", flush=True)
            found.append(result.row)
    print(f"written: {tuned.write(found)}")
    return 0
