"""The ops of one model's layers on one thread, in CPU time: milliseconds, and the share of the multiply-add peak.

    python benchmarks/op_rates.py --model mvit_v2_s_16x4 --block 1

CPU time of the calling thread leaves out the time that other processes have the core, so these figures hold on a busy
machine too. The fastest of a few calls counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from peak import multiply_adds_here
from torch import Tensor

from mvit_kernels import measure, models, ops, use_backend
from mvit_kernels.models import LayerShape
from mvit_kernels.problem import tokens, touched_grid


def cpu_seconds(call: Callable[[], object], repeats: int = 5) -> float:
    fastest = float("inf")
    for _ in range(repeats):
        start = time.thread_time()
        call()
        fastest = min(fastest, time.thread_time() - start)
    return fastest


def peak_rate(dtype: torch.dtype) -> float:
    """Multiply-adds per second of one thread at its best."""
    done = multiply_adds_here(dtype)
    return done / cpu_seconds(lambda: multiply_adds_here(dtype))


def attention(s: LayerShape, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor], float, float]:
    """The op, its inputs, and the multiply-adds of forward and backward."""
    q, k, v = (torch.randn(1, s.heads, n, s.head_dim).to(dtype) for n in (s.num_q, s.num_kv, s.num_kv))
    rows = torch.randn(1, s.heads, s.num_q, sum(s.grid_kv)) if any(s.table_rows) else None

    def call() -> Tensor:
        return ops.pooling_attention(q, k, v, rel_pos=rows, grid_k=s.grid_kv, has_cls=s.has_cls, residual=s.residual)

    inputs = [q, k, v] if rows is None else [q, k, v, rows]
    return call, inputs, 2 * s.scores * s.head_dim, 5 * s.scores * s.head_dim


def pooling(s: LayerShape, dtype: torch.dtype, branch: str) -> tuple[Callable[[], Tensor], list[Tensor], float, float]:
    pool, grid = (s.pool_q if branch == "q" else s.pool_kv), s.grid
    assert pool is not None
    if pool.skips_tokens:
        touched = touched_grid(pool, grid)
        pool, grid = touched.pool, touched.thw
    count = int(s.has_cls) + tokens(grid)
    x = torch.randn(1, count, 3, s.heads, s.head_dim).to(dtype)[:, :, 0].transpose(1, 2)
    weight, norm_weight, norm_bias = (
        torch.randn(s.head_dim, 1, *pool.kernel),
        torch.ones(s.head_dim),
        torch.zeros(s.head_dim),
    )

    def call() -> Tensor:
        return ops.pool3d_norm(
            x,
            grid,
            pool,
            has_cls=s.has_cls,
            weight=weight,
            norm_weight=norm_weight,
            norm_bias=norm_bias,
            norm_eps=1e-6,
        )

    taps = tokens(pool.kernel) * tokens(pool.out_grid(grid)) * s.heads * s.head_dim
    return call, [x, weight, norm_weight, norm_bias], taps, 3 * taps


def show(
    name: str, dtype: torch.dtype, peak: float, case: tuple[Callable[[], Tensor], list[Tensor], float, float]
) -> None:
    call, inputs, forward, backward = case
    with torch.inference_mode():
        call()
        seconds = cpu_seconds(call)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    out = call()
    grad = torch.randn_like(out)
    back = cpu_seconds(lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True))
    line = f"{name:18} {str(dtype).removeprefix('torch.'):9}"
    for seconds_, work in ((seconds, forward), (back, backward)):
        line += f" {seconds_ * 1e3:8.2f} ms {2e-9 * work / seconds_:5.0f} GFLOP/s {100 * work / seconds_ / peak:4.0f} %"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mvit_v2_s_16x4", choices=models.list_models())
    parser.add_argument("--block", type=int, action="append", help="of the model; may be repeated (default: 1)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = measure.machine()
    print(f"{machine['cpu']}, SIMD {machine['simd']}, torch {machine['torch']}, {options.model}: forward, backward")
    with use_backend("cpu"):
        for dtype in (torch.float32, torch.bfloat16):
            peak = peak_rate(dtype)
            print(f"multiply-add peak  {str(dtype).removeprefix('torch.'):9} {2e-9 * peak:8.0f} GFLOP/s")
            for block in options.block or [1]:
                shape = models.layer_shapes(options.model)[block]
                show(f"{block} attention", dtype, peak, attention(shape, dtype))
                for branch, pool in (("q", shape.pool_q), ("k", shape.pool_kv)):
                    if pool is not None:
                        show(f"{block} pooling of {branch}", dtype, peak, pooling(shape, dtype, branch))


if __name__ == "__main__":
    main()
