"""Gradients of the ops, and the torch.library contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mvit_kernels import backends, ops, reference
from tests.numerics import Guarded, assert_within_rule
from tests.ops.attention_cases import AttentionCase
from tests.ops.pool_cases import K3, S1, PoolCase, pool

Call = Callable[..., Any]


def pooling(case: PoolCase, dtype: torch.dtype, function: Call) -> tuple[Call, list[Tensor]]:
    inputs = case.inputs(Guarded(), dtype)
    names = [name for name, value in inputs.items() if value is not None]

    def run(*tensors: Tensor) -> Any:
        x, *parameters = tensors
        return function(x, case.thw, case.pool, **dict(zip(names[1:], parameters, strict=True)), **case.options)

    return run, [inputs[name] for name in names]


def attention(case: AttentionCase, dtype: torch.dtype, function: Call) -> tuple[Call, list[Tensor]]:
    inputs = case.inputs(Guarded(), dtype)
    names = [name for name, value in inputs.items() if value is not None]

    def run(*tensors: Tensor) -> Any:
        out = function(**dict(zip(names, tensors, strict=True)), **case.options)
        return out[0] if isinstance(out, tuple) else out

    return run, [inputs[name] for name in names]


def rel_pos(grid: tuple[int, int, int], dtype: torch.dtype, function: Call) -> tuple[Call, list[Tensor]]:
    make = Guarded()
    n = grid[0] * grid[1] * grid[2]
    inputs = [make(1, 2, 1 + n, 12, dtype=dtype), *(make(s, s, 12, dtype=dtype) for s in grid)]

    def run(q: Tensor, t: Tensor, h: Tensor, w: Tensor) -> Any:
        return function(q, grid, grid, has_cls=True, table_t=t, table_h=h, table_w=w)

    return run, inputs


SMALL = {
    "conv": lambda dtype, which: pooling(
        PoolCase((2, 3, 3), pool("conv", K3, (1, 2, 2)), head_dim=3), dtype, which.pool3d_norm
    ),
    "conv per channel": lambda dtype, which: pooling(
        PoolCase((1, 4, 3), pool("conv", (1, 3, 3), S1), head_dim=4, per_channel=True), dtype, which.pool3d_norm
    ),
    "avg": lambda dtype, which: pooling(
        PoolCase((2, 3, 4), pool("avg", K3, (1, 2, 2)), head_dim=3, norm=False), dtype, which.pool3d_norm
    ),
    "max": lambda dtype, which: pooling(
        PoolCase((2, 3, 4), pool("max", K3, (1, 2, 2)), head_dim=3, norm=False), dtype, which.pool3d_norm
    ),
    "attention": lambda dtype, which: attention(
        AttentionCase((1, 2, 3), (1, 2, 2), head_dim=6), dtype, which.pooling_attention
    ),
    "attention without cls": lambda dtype, which: attention(
        AttentionCase((1, 2, 3), (1, 2, 2), head_dim=6, has_cls=False, residual="all", rel_pos=False),
        dtype,
        which.pooling_attention,
    ),
    "rel pos": lambda dtype, which: rel_pos((2, 3, 2), dtype, which.decomposed_rel_pos),
}


@pytest.mark.parametrize("name", SMALL)
def test_gradcheck_in_float64(name: str, backend) -> None:
    run, inputs = SMALL[name](torch.float64, ops)
    leaves = [t.detach().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(run, leaves, nondet_tol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_gradients_match_float64(name: str, dtype: torch.dtype, backend) -> None:
    run, inputs = SMALL[name](dtype, ops)
    spec, _ = SMALL[name](dtype, reference)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(run(*inputs).shape, generator=generator, dtype=torch.float64).to(run(*inputs).dtype)

    def gradients(function: Call, tensors: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        return torch.autograd.grad(function(*leaves), leaves, grad)

    kernel, eager = gradients(run, inputs, grad), gradients(spec, inputs, grad)
    oracle = gradients(spec, [t.double() for t in inputs], grad.double())
    for k, e, o in zip(kernel, eager, oracle, strict=True):
        assert_within_rule(k, e, o, "gradient", dtype)


def test_only_the_gradients_asked_for_are_made(backend) -> None:
    q, k, v = (torch.randn(1, 1, 4, 8) for _ in range(3))
    v.requires_grad_()
    ops.pooling_attention(q, k, v).sum().backward()
    assert v.grad is not None and q.grad is None and k.grad is None


def test_one_tensor_given_as_q_k_and_v_gets_the_sum_of_three_gradients(backend) -> None:
    x = torch.randn(1, 2, 5, 8, dtype=torch.float64, requires_grad=True)
    (once,) = torch.autograd.grad(ops.pooling_attention(x, x, x).square().sum(), x)
    copies = [x.detach().clone().requires_grad_() for _ in range(3)]
    apart = torch.autograd.grad(ops.pooling_attention(*copies).square().sum(), copies)
    torch.testing.assert_close(once, sum(apart))


def test_an_unused_branch_needs_no_gradient(backend) -> None:
    x = [torch.randn(1, 1, 8, 4, requires_grad=True) for _ in range(2)]
    geometry = pool("avg", (2, 2, 2), (2, 2, 2), (0, 0, 0))
    nothing = [None, None]
    first, _ = ops.qkv_pool3d_norm(
        x, [(2, 2, 2)] * 2, [geometry] * 2, weight=nothing, norm_weight=nothing, norm_bias=nothing, norm_eps=nothing
    )
    first.sum().backward()
    assert x[0].grad is not None and (x[1].grad is None or not x[1].grad.any())


def test_backward_works_when_called_again_and_under_checkpointing(backend) -> None:
    run, inputs = SMALL["attention"](torch.float64, ops)
    leaves = [t.detach().requires_grad_() for t in inputs]
    out = run(*leaves)
    first = torch.autograd.grad(out.sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(out.sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for reentrant in (True, False):
        again = torch.utils.checkpoint.checkpoint(run, *leaves, use_reentrant=reentrant)
        grads = torch.autograd.grad(again.sum(), leaves) if not reentrant else None
        if reentrant:
            again.sum().backward()
            grads = tuple(leaf.grad for leaf in leaves)
        assert all(torch.equal(a, b) for a, b in zip(first, grads, strict=True))


OPCHECK = {
    "pool3d_norm": lambda x: (
        x(1, 2, 13, 8),
        (3, 2, 2),
        True,
        "conv",
        (3, 3, 3),
        (1, 1, 1),
        (1, 1, 1),
        x(8, 1, 3, 3, 3),
        x(8),
        x(8),
        1e-6,
    ),
    "qkv_pool3d_norm": lambda x: (
        [x(1, 2, 13, 8), x(1, 2, 9, 8)],
        (3, 2, 2, 2, 2, 2),
        True,
        ["conv", "max"],
        (3, 3, 3, 2, 2, 2),
        (1, 1, 1, 2, 2, 2),
        (1, 1, 1, 0, 0, 0),
        [x(8, 1, 3, 3, 3), x(0)],
        [x(8), x(0)],
        [x(8), x(0)],
        [1e-6, -1.0],
    ),
    "decomposed_rel_pos": lambda x: (x(1, 2, 9, 8), (2, 2, 2), (1, 2, 3), True, x(2, 1, 8), x(2, 2, 8), x(2, 3, 8)),
    "pooling_attention": lambda x: (
        x(1, 2, 5, 8),
        x(1, 2, 9, 8),
        x(1, 2, 9, 8),
        x(1, 2, 5, 6),
        (2, 2, 2),
        0.3,
        True,
        "no_cls",
    ),
}


@pytest.mark.skipif("cpu" not in backends.available(), reason="the C++ library is not there")
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", OPCHECK)
def test_opcheck(name: str, requires_grad: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).requires_grad_(requires_grad)

    torch.library.opcheck(getattr(torch.ops.mvit_kernels, name).default, OPCHECK[name](make))
