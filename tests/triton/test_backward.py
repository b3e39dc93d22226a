"""Triton's backward kernels, and those of decomposed_rel_pos, against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mvit_kernels import ops, reference
from mvit_kernels.problem import Pool
from tests.numerics import Guarded, assert_within_rule
from tests.ops import test_backward as backward
from tests.ops.attention_cases import AttentionCase
from tests.ops.pool_cases import K3, S1, PoolCase, pool
from tests.ops.test_decomposed_rel_pos import make_inputs
from tests.triton.conftest import DEVICE, DTYPES

POOLING = [
    PoolCase((2, 3, 4), pool("conv", K3, S1)),
    PoolCase((1, 1, 1), pool("conv", (1, 3, 3), S1), head_dim=64),
    PoolCase((1, 7, 5), pool("conv", (1, 3, 3), (1, 2, 2)), head_dim=80),
    PoolCase((2, 9, 9), pool("conv", (1, 3, 3), (1, 8, 8)), head_dim=72, has_cls=False),
    PoolCase((1, 9, 9), pool("conv", (1, 9, 9), (1, 8, 8)), head_dim=48, heads=1),
    PoolCase((3, 4, 5), pool("conv", K3, S1, (0, 0, 0)), head_dim=20),
    PoolCase((2, 6, 6), pool("conv", (2, 2, 2), (2, 2, 2), (0, 0, 0)), head_dim=8),
    PoolCase((3, 4, 5), pool("conv", K3, (2, 1, 3), (2, 2, 2)), head_dim=5, batch=2),
    PoolCase((2, 3, 3), pool("conv", (2, 2, 2), S1, (0, 0, 0)), heads=3, head_dim=20, per_channel=True, batch=2),
    PoolCase((2, 4, 4), pool("conv", (1, 3, 3), S1), norm=False),
    PoolCase((2, 4, 4), pool("conv", (1, 3, 3), S1), affine=False),
    PoolCase((2, 5, 7), pool("avg", K3, (1, 2, 2)), norm=False),
    PoolCase((1, 8, 8), pool("avg", (1, 2, 2), (1, 2, 2)), has_cls=False, head_dim=33),
    PoolCase((2, 5, 7), pool("max", K3, (1, 2, 2)), norm=False),
    PoolCase((1, 14, 14), pool("max", (1, 3, 3), (1, 2, 2)), heads=1, head_dim=384, norm=False),
    PoolCase((2, 6, 5), pool("max", (2, 2, 2), (2, 2, 2), (1, 1, 1)), has_cls=False, head_dim=33),
    PoolCase((2, 5, 5), pool("conv", K3, S1), batch=0),
]
ATTENTION = [
    AttentionCase((1, 4, 4), (2, 5, 5)),
    AttentionCase((1, 1, 1), (1, 1, 1), has_cls=False),
    AttentionCase((1, 3, 5), (1, 13, 11), head_dim=80, residual="all"),
    AttentionCase((1, 7, 7), (1, 7, 7), head_dim=72, has_cls=False, residual="all", heads=1),
    AttentionCase((1, 5, 7), (1, 17, 9), head_dim=64, residual="none", heads=1),
    AttentionCase((3, 5, 7), (1, 2, 2), head_dim=48, rel_pos=False),
    AttentionCase((1, 5, 7), (3, 3, 3), head_dim=100, rel_pos=False, residual="all", batch=2),
    AttentionCase((1, 6, 6), (1, 8, 8), head_dim=128, has_cls=False, residual="none", rel_pos=False),
    AttentionCase((1, 2, 3), (8, 14, 14), heads=1, head_dim=16),
    AttentionCase((2, 3, 3), (2, 3, 3), batch=0),
]
REL_POS = [
    ((2, 3, 3), (2, 3, 4), 96),
    ((1, 1, 1), (1, 1, 1), 7),
    ((1, 3, 5), (1, 7, 7), 72),
    ((2, 2, 3), (4, 3, 33), 64),
]


def check(run: Callable[..., Any], inputs: list[Tensor], make: Guarded, dtype: torch.dtype) -> None:
    grad = backward.incoming(run(reference, inputs).cpu()).to(DEVICE) if DEVICE != "cpu" else None
    if grad is None:
        grad = backward.incoming(run(reference, inputs))
    out = run(ops, inputs)
    kernel, eager = (backward.gradients(run, which, inputs, grad) for which in (ops, reference))
    make.assert_untouched()
    wide = [t.double() for t in inputs]
    oracle = backward.gradients(run, reference, wide, grad.double())
    assert_within_rule(out, run(reference, inputs), run(reference, wide), dtype=dtype)
    for k, e, o in zip(kernel, eager, oracle, strict=True):
        assert k.is_contiguous() or k.transpose(1, 2).is_contiguous()
        assert_within_rule(k, e, o, "gradient", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", POOLING, ids=str)
def test_pooling_gradients_match_float64(case: PoolCase, dtype: torch.dtype, poisoned_memory) -> None:
    make = Guarded(device=DEVICE)
    check(*backward.pooling(case, dtype, make), make, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention_gradients_match_float64(case: AttentionCase, dtype: torch.dtype, poisoned_memory) -> None:
    make = Guarded(device=DEVICE)
    check(*backward.attention(case, dtype, make), make, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("grids", REL_POS, ids=str)
def test_rel_pos_and_its_gradients_match_float64(grids, has_cls: bool, dtype, poisoned_memory) -> None:
    make = Guarded(device=DEVICE)
    check(*backward.rel_pos(grids, has_cls, dtype, make), make, dtype)


@pytest.mark.parametrize("absent", range(3))
def test_an_axis_without_a_table_gives_zeros(absent: int, poisoned_memory) -> None:
    grid = (2, 3, 2)
    q, *tables = make_inputs(Guarded(device=DEVICE), grid, grid, 16, True, torch.float32)
    tables[absent] = None
    named = dict(zip(("table_t", "table_h", "table_w"), tables, strict=True))
    rows = ops.decomposed_rel_pos(q, grid, grid, has_cls=True, **named)
    expected = reference.decomposed_rel_pos(q, grid, grid, has_cls=True, **named)
    torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_of_the_log_sum_exp_matches_float64(dtype: torch.dtype, poisoned_memory) -> None:
    case = AttentionCase((1, 3, 4), (1, 4, 5), heads=1, head_dim=16)
    inputs = [t for t in case.inputs(Guarded(device=DEVICE), dtype).values() if t is not None]

    def gradients(op: Callable[..., Any], tensors: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        out, lse = op(*leaves)
        weight = torch.arange(lse.numel(), device=lse.device).view_as(lse) / lse.numel()
        return torch.autograd.grad((out * 0.5).sum() + (lse * weight).sum(), [leaves[0], leaves[1], leaves[3]])

    def eager(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return reference.pooling_attention(q, k, v, rel_pos=rows, **case.options)

    def kernel(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        options = (case.grid_k, case.head_dim**-0.5, case.has_cls, case.residual)
        return torch.ops.mvit_kernels_triton.pooling_attention(q, k, v, rows, *options)

    results = (gradients(kernel, inputs), gradients(eager, inputs), gradients(eager, [t.double() for t in inputs]))
    for k, e, o in zip(*results, strict=True):
        assert_within_rule(k, e, o, "gradient", dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [slice(*s) for s in ((0, 2), (2, 5), (5, 9), (0, 9), (1, 9), (2, 3))], ids=str)
@pytest.mark.parametrize("has_cls", [True, False])
def test_a_rel_pos_row_of_minus_infinity_gives_nan_where_eager_does(has_cls: bool, axis: slice, dtype) -> None:
    case = AttentionCase((1, 2, 3), (2, 3, 4), heads=2, head_dim=16, has_cls=has_cls)
    run, inputs = backward.attention(case, dtype, Guarded(device=DEVICE))
    inputs[3][0, 1, 4, axis] = -torch.inf
    out, expected = run(ops, inputs), run(reference, inputs)
    assert expected.isnan().any() == (not has_cls and axis not in (slice(2, 3),))
    assert torch.equal(out.isnan(), expected.isnan())
    grad = torch.ones_like(expected)
    kernel, eager = (backward.gradients(run, which, inputs, grad) for which in (ops, reference))
    for k, e in zip(kernel, eager, strict=True):
        assert torch.equal(k.isnan(), e.isnan())


@pytest.mark.parametrize("dtype", DTYPES)
def test_max_pooling_gives_the_gradient_to_the_winner_pytorch_picks(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (1, 2, 2 * 5 * 7, 20), generator=generator).to(DEVICE, dtype)  # ties everywhere
    x[0, 0, 40:42, 3] = torch.nan
    x[0, 1, :, 5] = -torch.inf
    geometry = pool("max", K3, (1, 2, 2))

    def run(which: Any, tensors: list[Tensor]) -> Tensor:
        return which.pool3d_norm(tensors[0], (2, 5, 7), geometry, has_cls=False)

    grad = torch.randint(1, 9, run(reference, [x]).shape, generator=generator).to(DEVICE, dtype)
    (kernel,), (expected,) = (backward.gradients(run, which, [x], grad) for which in (ops, reference))
    assert torch.equal(kernel, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_three_branches_match_float64(dtype: torch.dtype, poisoned_memory) -> None:
    cases = [
        PoolCase((1, 3, 4), pool("conv", (1, 3, 3), S1), head_dim=40),
        PoolCase((1, 3, 4), pool("conv", (1, 3, 3), (1, 2, 2)), head_dim=40, affine=False),
        PoolCase((1, 4, 3), pool("avg", (1, 2, 2), (1, 2, 2), (0, 0, 0)), head_dim=40, norm=False),
    ]
    make = Guarded(device=DEVICE)
    named = [(case, {k: v for k, v in case.inputs(make, dtype).items() if v is not None}) for case in cases]

    def run(which: Any, tensors: list[Tensor]) -> Tensor:
        left = iter(tensors)
        given = [dict(zip(inputs, left, strict=False)) for _, inputs in named]
        outs = which.qkv_pool3d_norm(
            [values["x"] for values in given],
            [case.thw for case in cases],
            [case.pool for case in cases],
            has_cls=True,
            norm_eps=[case.options["norm_eps"] for case in cases],
            **{name: [values.get(name) for values in given] for name in ("weight", "norm_weight", "norm_bias")},
        )
        return torch.cat(outs, 2)

    check(run, [tensor for _, inputs in named for tensor in inputs.values()], make, dtype)


def test_parts_of_the_sums_over_many_tokens_are_added_up(monkeypatch: pytest.MonkeyPatch, poisoned_memory) -> None:
    from mvit_kernels.triton_kernels import run_attention, run_pool, run_rel_pos

    for module in (run_attention, run_pool, run_rel_pos):
        monkeypatch.setattr(module, "splits", lambda programs, steps: min(3, steps))
    attention = AttentionCase((1, 9, 9), (1, 3, 3), head_dim=16)
    pooling = PoolCase((4, 6, 6), Pool("conv", (1, 3, 3), S1, (0, 1, 1)), head_dim=64, heads=1)
    for seed, problem in enumerate(
        (
            lambda make: backward.attention(attention, torch.float32, make),
            lambda make: backward.pooling(pooling, torch.float32, make),
            lambda make: backward.rel_pos(((4, 5, 5), (2, 3, 3), 16), True, torch.float32, make),
        )
    ):
        make = Guarded(seed, DEVICE)
        check(*problem(make), make, torch.float32)


def test_same_input_gives_the_same_bits_again() -> None:
    make = Guarded(device=DEVICE)
    run, inputs = backward.attention(AttentionCase((1, 5, 5), (1, 3, 3), head_dim=16), torch.float32, make)
    grad = torch.ones_like(run(reference, inputs))
    first, second = (backward.gradients(run, ops, inputs, grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
