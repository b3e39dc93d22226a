"""`explain`: per layer of a model the problem, the backend that runs it, and what there is to know about it."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from typing import Any

import torch

import mvit_kernels

from .. import backends
from .options import DTYPES, add_run_options, prepare
from .workload import build


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "explain",
        help="per layer of a model: problem, backend and notes",
        description="Run a model once on zeros, accelerated, and print for each layer and op the problem, the backend "
        "and its notes; then, for each kind of problem, why the other backends were not chosen.",
    )
    parser.add_argument(
        "--model", default="torchvision:mvit_v2_s", metavar="NAME", help="as for bench (default: %(default)s)"
    )
    parser.add_argument(
        "--training", action="store_true", help="with gradients: some kernels take less then (default: inference)"
    )
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    device = prepare(args)
    workload = build(args.model, size=args.size, seed=args.seed)
    model = workload.model.to(device, DTYPES[args.dtype])
    mvit_kernels.accelerate(model)
    x = torch.zeros(workload.input_shape(args.batch), dtype=DTYPES[args.dtype], device=device)
    with (
        nullcontext() if args.training else torch.inference_mode(),
        mvit_kernels.use_backend(args.backend) if args.backend else nullcontext(),
    ):
        explanation = mvit_kernels.explain_model(model, x)
        print(explanation)
        first_of_each = {decision.problem.op: decision.problem for decision in reversed(explanation.decisions)}
        for problem in reversed(first_of_each.values()):
            print("\n" + backends.explain(problem))
    return 0
