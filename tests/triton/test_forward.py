"""Triton's forward kernels against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mvit_kernels import backends, ops, reference
from mvit_kernels.problem import Pool
from tests.numerics import Guarded, assert_within_rule, double
from tests.ops import attention_cases, pool_cases
from tests.ops.attention_cases import AttentionCase
from tests.ops.pool_cases import K3, S1, PoolCase, pool
from tests.triton.conftest import DEVICE, DTYPES

# What the interpreter does in seconds. Published layers at a reduced grid are among them, by head dim and key count.
POOLING = [case for case in pool_cases.ODD_CASES if case.thw not in ((2, 23, 29), (4, 14, 14))] + [
    PoolCase((2, 8, 9), pool("conv", K3, (1, 2, 2)), batch=2, heads=2, head_dim=64),
    PoolCase((2, 4, 5), pool("conv", (1, 5, 5), (1, 4, 4)), heads=1, head_dim=72),
    PoolCase((1, 4, 4), pool("max", (1, 3, 3), (1, 2, 2)), heads=1, head_dim=768, norm=False),
]
ATTENTION = [case for case in attention_cases.ODD_CASES if case.num_q * case.heads < 1000 and case.num_k < 1000] + [
    AttentionCase((2, 5, 5), (4, 7, 7), heads=2, batch=2),
    AttentionCase((1, 7, 7), (8, 7, 7), heads=1),
    AttentionCase((1, 4, 4), (1, 14, 14), head_dim=72, heads=1),
]


def check_attention(case: AttentionCase, dtype: torch.dtype) -> None:
    make = Guarded(device=DEVICE)
    inputs = case.inputs(make, dtype)
    out = ops.pooling_attention(**inputs, **case.options)
    make.assert_untouched()
    eager, _ = reference.pooling_attention(**inputs, **case.options)
    oracle, _ = reference.pooling_attention(
        **dict(zip(inputs, double(list(inputs.values())), strict=True)), **case.options
    )
    assert_within_rule(out, eager, oracle)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", POOLING, ids=str)
def test_pooling_matches_float64(case: PoolCase, dtype: torch.dtype, poisoned_memory) -> None:
    make = Guarded(device=DEVICE)
    inputs = case.inputs(make, dtype)
    x, *parameters = inputs.values()
    names = list(inputs)[1:]

    def run(which: Any, x: torch.Tensor, parameters: list[Any]) -> torch.Tensor:
        return which.pool3d_norm(x, case.thw, case.pool, **dict(zip(names, parameters, strict=True)), **case.options)

    out = run(ops, x, parameters)
    make.assert_untouched()
    assert_within_rule(out, run(reference, x, parameters), run(reference, x.double(), double(parameters)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention_matches_float64(case: AttentionCase, dtype: torch.dtype, poisoned_memory) -> None:
    check_attention(case, dtype)


@pytest.mark.parametrize("num_k", [1, 15, 16, 17, 31, 32, 33, 48, 49, 63, 64, 65, 80, 97, 113, 127, 129, 197])
def test_attention_matches_float64_at_every_tail_of_a_key_tile(num_k: int, poisoned_memory) -> None:
    case = AttentionCase((1, 2, 3), (1, 1, num_k), heads=1, head_dim=16, has_cls=False, rel_pos=num_k % 2 == 0)
    check_attention(case, torch.float16)
    check_attention(case, torch.float32)


def test_log_sum_exp_matches_float64(poisoned_memory) -> None:
    case = AttentionCase((1, 5, 7), (2, 4, 5), heads=2)
    inputs, options = case.inputs(Guarded(device=DEVICE), torch.float16), case.options
    _, lse = backends.get("triton").pooling_attention(**inputs, **options)
    _, eager = reference.pooling_attention(**inputs, **options)
    _, oracle = reference.pooling_attention(**dict(zip(inputs, double(list(inputs.values())), strict=True)), **options)
    assert_within_rule(lse, eager, oracle, dtype=torch.float16)


@pytest.mark.parametrize("num_k", [5, 40, 70])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["q", "k", "v", "rel_pos"])
def test_nan_and_infinity_propagate_as_in_eager(where: str, bad: float, num_k: int) -> None:
    case = AttentionCase((1, 3, 5), (1, 1, num_k), heads=1, head_dim=16, has_cls=False)
    inputs = case.inputs(Guarded(device=DEVICE), torch.float32)
    tensor = inputs[where]
    tensor[0, 0, min(7, tensor.shape[2] - 1), min(3, tensor.shape[3] - 1)] = bad
    out = ops.pooling_attention(**inputs, **case.options)
    expected, _ = reference.pooling_attention(**inputs, **case.options)
    assert torch.equal(out.isnan(), expected.isnan())
    torch.testing.assert_close(out, expected, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_nan_and_infinity_reach_the_pooled_outputs_that_read_them_and_no_others() -> None:
    for mode, bad in (("conv", torch.nan), ("conv", torch.inf), ("max", torch.nan), ("max", torch.inf)):
        x = torch.randn(1, 1, 25, 8, device=DEVICE)
        x[0, 0, 12, 3] = bad
        weight = torch.rand(8, 1, 1, 3, 3, device=DEVICE) + 0.1 if mode == "conv" else None
        geometry = pool(mode, (1, 3, 3), S1)
        out = ops.pool3d_norm(x, (1, 5, 5), geometry, weight=weight)
        expected = reference.pool3d_norm(x, (1, 5, 5), geometry, has_cls=False, weight=weight)
        assert torch.equal(out.isfinite(), expected.isfinite()), (mode, bad)
        assert torch.equal(out.isnan(), expected.isnan()), (mode, bad)


def test_three_branches_of_a_fused_projection_match_three_calls(poisoned_memory) -> None:
    cases = [
        PoolCase((2, 5, 7), pool("conv", K3, S1)),
        PoolCase((2, 5, 7), pool("conv", K3, (1, 4, 4))),
        PoolCase((2, 3, 4), Pool("max", (1, 2, 2), (1, 2, 2), (0, 0, 0)), norm=False),
    ]
    make = Guarded(device=DEVICE)
    inputs = [case.inputs(make, torch.float32) for case in cases]
    parameters = ("weight", "norm_weight", "norm_bias")
    together = ops.qkv_pool3d_norm(
        [i["x"] for i in inputs],
        [case.thw for case in cases],
        [case.pool for case in cases],
        has_cls=True,
        norm_eps=[case.options["norm_eps"] for case in cases],
        **{name: [i[name] for i in inputs] for name in parameters},
    )
    make.assert_untouched()
    for out, case, i in zip(together, cases, inputs, strict=True):
        x = i.pop("x")
        assert torch.equal(out, ops.pool3d_norm(x, case.thw, case.pool, **i, **case.options))
