"""The CPU kernels in the company of threads, forks and failed allocations."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mvit_kernels import backends, ops, use_backend
from mvit_kernels.problem import Pool

pytestmark = pytest.mark.skipif("cpu" not in backends.available(), reason="the CPU library is not built")

THW = (4, 14, 14)
POOL = Pool("conv", (3, 3, 3), (1, 2, 2), (1, 1, 1))


@pytest.fixture(autouse=True)
def on_cpu_kernels() -> Iterator[None]:
    with use_backend("cpu"):
        yield


def layer(seed: int, backward: bool = True) -> list[Tensor]:
    """Pooling, relative position and attention of random tokens: the output, and the gradients of all inputs."""
    make = torch.Generator().manual_seed(seed)
    x, weight, norm_weight, norm_bias, *tables = inputs = [
        torch.randn(*shape, generator=make)
        for shape in [(1, 3, 785, 40), (40, 1, 3, 3, 3), (40,), (40,), (4, 4, 40), (7, 7, 40), (7, 7, 40)]
    ]
    for tensor in inputs:
        tensor.requires_grad_(backward)
    q, k, v = ops.qkv_pool3d_norm(
        [x] * 3,
        [THW] * 3,
        [POOL] * 3,
        has_cls=True,
        weight=[weight] * 3,
        norm_weight=[norm_weight] * 3,
        norm_bias=[norm_bias] * 3,
        norm_eps=[1e-6] * 3,
    )
    grid = POOL.out_grid(THW)
    t, h, w = tables
    rows = ops.decomposed_rel_pos(q, grid, grid, has_cls=True, table_t=t, table_h=h, table_w=w)
    out = ops.pooling_attention(q, k, v, rel_pos=rows, grid_k=grid, has_cls=True, residual="no_cls")
    if not backward:
        return [out]
    return [out.detach(), *torch.autograd.grad(out, inputs, torch.ones(()).expand_as(out))]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
@pytest.mark.parametrize("threads", [1, 3])
def test_set_num_threads_is_honoured(threads: int) -> None:
    code = f"""
import os, torch
from mvit_kernels import ops
torch.set_num_threads({threads})
q = torch.randn(1, 8, 393, 96)
before = len(os.listdir("/proc/self/task"))
ops.pooling_attention(q, q, q)
print(len(os.listdir("/proc/self/task")) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == str(threads - 1), done.stderr


def test_several_python_threads_at_once_get_what_each_gets_alone() -> None:
    expected = [layer(seed) for seed in range(4)]
    found: list[list[list[Tensor]]] = [[] for _ in expected]
    start = threading.Barrier(len(expected))

    def work(seed: int) -> None:
        start.wait()
        with use_backend("cpu"):
            found[seed] = [layer(seed) for _ in range(5)]

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(len(expected))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for results, wanted in zip(found, expected, strict=True):
        assert len(results) == 5
        for result in results:
            assert_equal(result, wanted)


class Layers(Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return layer(index, backward=False)[0]


def test_works_in_a_forked_data_loader_worker_after_the_parent_used_the_thread_pool() -> None:
    expected = [layer(index, backward=False)[0] for index in range(4)]  # the pool's threads do not survive the fork
    loader = DataLoader(Layers(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=120)
    assert_equal(list(loader), expected)
    assert_equal([layer(index, backward=False)[0] for index in range(4)], expected)


def test_inference_tensors_give_the_same_numbers_inside_and_outside_of_inference_mode() -> None:
    q = torch.randn(1, 2, 50, 40)
    expected = ops.pooling_attention(q, q, q)
    with torch.inference_mode():
        made_inside = q.clone()
        assert torch.equal(ops.pooling_attention(made_inside, made_inside, made_inside), expected)
    assert made_inside.is_inference()
    with torch.no_grad():
        assert torch.equal(ops.pooling_attention(made_inside, made_inside, made_inside), expected)


@pytest.mark.parametrize("expanded", ["everything", "heads", "batch"])
def test_an_expanded_gradient_of_stride_zero_gives_what_its_copy_gives(expanded: str) -> None:
    q = torch.randn(2, 3, 50, 40, requires_grad=True)
    shape = {"everything": (1, 1, 1, 1), "heads": (2, 50, 1, 40), "batch": (1, 50, 3, 40)}[expanded]
    grad = torch.randn(shape).expand(2, 50, 3, 40)
    out = ops.pooling_attention(q, q, q)
    assert torch.equal(
        torch.autograd.grad(out, q, grad, retain_graph=True)[0], torch.autograd.grad(out, q, grad.contiguous())[0]
    )


def test_out_of_memory_raises_and_the_next_call_works() -> None:
    expected = layer(0)
    one = torch.randn(1, 1, 1, 8)
    keys = one.expand(1, 1, 2**45, 8)  # takes no memory itself; packed it would take 2**50 bytes
    with pytest.raises(RuntimeError, match="memory"):
        ops.pooling_attention(one, keys, keys)
    q = one.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="memory"):
        ops.pooling_attention(q, keys, keys)
    grid = (2**10, 2**20, 2**12)
    with pytest.raises(RuntimeError, match="memory"):
        ops.pool3d_norm(one.expand(1, 1, 2**42, 8), grid, Pool("max", (3, 3, 3), (1, 1, 1), (1, 1, 1)))
    assert_equal(layer(0), expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_small_last_stages_give_the_same_bits_at_any_number_of_threads(threads: int) -> None:
    """8 heads of 50 queries: fewer rows of queries than would fill every thread with whole heads."""
    q, k = torch.randn(1, 8, 50, 96), torch.randn(1, 8, 393, 96)
    expected = ops.pooling_attention(q, k, k)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(ops.pooling_attention(q, k, k), expected)
    finally:
        torch.set_num_threads(before)
