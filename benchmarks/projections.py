"""Every projection of mvit_v1_b and mvit_v2_s: `ops.linear` against F.linear, in turn in one run.

    python benchmarks/projections.py [--dtype bfloat16] [--backward]

CPU time of one thread, the lowest of all rounds: it depends little on what else the machine does.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from mvit_kernels import measure, ops

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
COLUMNS = {"F.linear": 10, "ours": 8, "+gelu": 8, "+residual": 11}
STAGES = ((25089, 96), (6273, 192), (1569, 384), (393, 768))


def shapes() -> list[tuple[str, int, int, int]]:
    """(what, rows, inputs, outputs) of every stage, and the projections that change channels."""
    found = []
    for rows, c in STAGES:
        found += [("qkv", rows, c, 3 * c), ("out", rows, c, c), ("fc1", rows, c, 4 * c), ("fc2", rows, 4 * c, c)]
        if c < 768:
            found += [("fc2 to the next stage", rows, 4 * c, 2 * c), ("qkv to the next stage", rows, c, 6 * c)]
    return found


def lowest(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU seconds of this thread, the lowest of `rounds`, the calls taking turns."""
    seconds = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.thread_time()
            call()
            seconds[name] = min(seconds[name], time.thread_time() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--backward", action="store_true", help="gradients of x, weight and bias instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dtype = DTYPES[options.dtype]
    machine = measure.machine("cpu")
    print(f"{machine['cpu']}, 1 thread, SIMD {machine['simd']}, torch {machine['torch']}, {options.dtype}")
    print(f"GFLOP/s, then F.linear's time over ours\n{'':<24}{'rows':>6}{'in':>6}{'out':>6}", end="")
    print("".join(f"{name:>{width}}" for name, width in list(COLUMNS.items())[: 2 if options.backward else 4]))
    for shape in shapes():
        print(row(*shape, dtype, options.rounds, options.backward), flush=True)


def row(what: str, rows: int, inputs: int, outputs: int, dtype: torch.dtype, rounds: int, backward: bool) -> str:
    """The measured line of one projection."""
    generator = torch.Generator().manual_seed(0)
    x, w, b, r = (
        torch.randn(*shape, generator=generator).to(dtype)
        for shape in ((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs))
    )
    flop = 2e-9 * rows * inputs * outputs
    if backward:
        leaves = [t.requires_grad_() for t in (x, w, b)]
        theirs, ours = F.linear(x, w, b), ops.linear(x, w, b)
        calls: dict[str, Callable[[], object]] = {
            "F.linear": lambda: torch.autograd.grad(theirs, leaves, r, retain_graph=True),
            "ours": lambda: torch.autograd.grad(ours, leaves, r, retain_graph=True),
        }
        seconds, flop = lowest(calls, rounds), 2 * flop
    else:
        calls = {
            "F.linear": lambda: F.linear(x, w, b),
            "ours": lambda: ops.linear(x, w, b),
            "+gelu": lambda: ops.linear(x, w, b, activation="gelu"),
            "+residual": lambda: ops.linear(x, w, b, residual=r),
        }
        with torch.inference_mode():
            seconds = lowest(calls, rounds)
    cells = "".join(f"{flop / seconds[name]:>{width}.0f}" for name, width in COLUMNS.items() if name in seconds)
    return f"{what:<24}{rows:>6}{inputs:>6}{outputs:>6}{cells}   {seconds['F.linear'] / seconds['ours']:.2f}x"


if __name__ == "__main__":
    main()
