"""Offsets beyond 2^31 elements, without the memory: views whose strides step over most of it.

An offset in 32 bits would wrap to an address that is not in the buffer.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mvit_kernels import ops, reference
from tests.ops import test_backward as backward
from tests.ops.pool_cases import pool
from tests.triton.conftest import DEVICE

FAR = 2**31 + 64


def spread(shape: tuple[int, int, int, int], far: int, seed: int) -> Tensor:
    """Random float16 (B, H, N, D) whose steps along dimension `far` are together more than 2^31 elements."""
    strides = [0, 0, 0, 1]
    step = shape[3]
    for dim in (2, 1, 0):
        strides[dim] = step
        step *= shape[dim]
    strides[far] = max(math.ceil(FAR / (shape[far] - 1) / 64) * 64, strides[far])
    size = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    buffer = torch.empty(size, dtype=torch.float16, device=DEVICE)  # pages that nothing touches take no memory
    view = buffer.as_strided(shape, strides)
    view.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
    assert (shape[far] - 1) * strides[far] > 2**31
    return view


def close(run, inputs: list[Tensor]) -> None:
    near = [t.contiguous() for t in inputs]
    grad = torch.randn(run(reference, near).shape, generator=torch.Generator().manual_seed(9)).to(near[0])
    out, expected = run(ops, inputs), run(ops, near)
    assert torch.equal(out, expected)
    for a, b in zip(*(backward.gradients(run, ops, leaves, grad) for leaves in (inputs, near)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("far", [0, 1, 2], ids=["batch", "head", "token"])
def test_attention_far_into_a_buffer_gives_the_same_bits(far: int) -> None:
    def run(which, inputs: list[Tensor]) -> Tensor:
        q, k, v = inputs
        if which is reference:
            return which.pooling_attention(q, k, v, scale=0.25, has_cls=True, residual="all")[0]
        return which.pooling_attention(q, k, v, scale=0.25, has_cls=True, residual="all")

    close(run, [spread((2, 2, 7, 16), far, 0), *(torch.randn(2, 2, 5, 16, device=DEVICE).half() for _ in range(2))])
    close(run, [torch.randn(2, 2, 7, 16, device=DEVICE).half(), *(spread((2, 2, 5, 16), far, i) for i in (1, 2))])


@pytest.mark.parametrize("far", [0, 1, 2], ids=["batch", "head", "token"])
def test_pooling_far_into_a_buffer_gives_the_same_bits(far: int) -> None:
    weight = torch.randn(16, 1, 1, 3, 3, device=DEVICE).half()

    def run(which, inputs: list[Tensor]) -> Tensor:
        x, weight = inputs
        geometry = pool("conv", (1, 3, 3), (1, 1, 2))
        return which.pool3d_norm(x, (1, 3, 4), geometry, has_cls=True, weight=weight, norm_eps=1e-6)

    close(run, [spread((2, 2, 13, 16), far, 3), weight])


@pytest.mark.parametrize("far", [0, 1, 2], ids=["batch", "head", "token"])
def test_rel_pos_far_into_a_buffer_gives_the_same_bits(far: int) -> None:
    tables = [torch.randn(n, n, 16, device=DEVICE).half() for n in (2, 3, 2)]

    def run(which, inputs: list[Tensor]) -> Tensor:
        q, *tables = inputs
        named = dict(zip(("table_t", "table_h", "table_w"), tables, strict=True))
        return which.decomposed_rel_pos(q, (2, 3, 2), (2, 3, 2), has_cls=True, **named)

    close(run, [spread((2, 2, 13, 16), far, 4), *tables])
