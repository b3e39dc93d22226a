"""pooling_attention against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvit_kernels import backends, ops, reference
from tests.conftest import KERNEL_BACKENDS
from tests.numerics import Guarded, assert_within_rule, double
from tests.ops.attention_cases import ODD_CASES, AttentionCase

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def check(case: AttentionCase, dtype: torch.dtype) -> None:
    make = Guarded()
    inputs = case.inputs(make, dtype)
    out = ops.pooling_attention(**inputs, **case.options)
    make.assert_untouched()
    assert out.is_contiguous()
    eager, _ = reference.pooling_attention(**inputs, **case.options)
    oracle, _ = reference.pooling_attention(
        **dict(zip(inputs, double(list(inputs.values())), strict=True)), **case.options
    )
    assert_within_rule(out, eager, oracle)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ODD_CASES, ids=str)
def test_attention_matches_float64_on_odd_shapes(case: AttentionCase, dtype, backend, poisoned_memory) -> None:
    check(case, dtype)


@pytest.mark.parametrize("name", KERNEL_BACKENDS)
@given(data=st.data())
def test_attention_matches_float64_on_any_shape(name: str, data: st.DataObject) -> None:
    side = st.integers(1, 9)
    case = AttentionCase(
        data.draw(st.tuples(side, side, side)),
        data.draw(st.tuples(side, side, side)),
        batch=data.draw(st.integers(1, 2)),
        heads=data.draw(st.integers(1, 3)),
        head_dim=data.draw(st.integers(1, 40)),
        has_cls=data.draw(st.booleans()),
        rel_pos=data.draw(st.booleans()),
        residual=data.draw(st.sampled_from(["none", "all", "no_cls"])),
    )
    with backends.use_backend(name):
        check(case, data.draw(st.sampled_from([torch.float32, torch.float64])))


@pytest.mark.parametrize("num_k", [*range(1, 34), 47, 48, 49, 63, 64, 65, 393, 511, 512, 513, 1023, 1025])
def test_attention_matches_float64_at_every_tail_of_a_key_tile(num_k: int, backend, poisoned_memory) -> None:
    check(AttentionCase((1, 5, 5), (1, 1, num_k), heads=1, has_cls=False, rel_pos=num_k % 2 == 0), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_log_sum_exp_matches_float64(dtype: torch.dtype, backend, poisoned_memory) -> None:
    case = AttentionCase((2, 5, 7), (2, 9, 9), heads=3)
    inputs, options = case.inputs(Guarded(), dtype), case.options
    op_backend = backends.get(backend)
    _, lse = op_backend.pooling_attention(**inputs, **options)
    _, eager = reference.pooling_attention(**inputs, **options)
    _, oracle = reference.pooling_attention(**dict(zip(inputs, double(list(inputs.values())), strict=True)), **options)
    assert lse.dtype == torch.promote_types(dtype, torch.float32)
    assert_within_rule(lse, eager, oracle, dtype=dtype)


def test_heads_are_merged_by_a_view(backend) -> None:
    q = torch.randn(2, 3, 5, 8)
    out = ops.pooling_attention(q, q, q)
    assert out.shape == (2, 5, 3, 8) and out.flatten(2).data_ptr() == out.data_ptr()


def test_cls_row_is_left_out_of_the_residual_when_asked(backend) -> None:
    q, k, v = (torch.randn(1, 2, n, 16) for n in (6, 5, 5))
    none = ops.pooling_attention(q, k, v, has_cls=True, residual="none")
    no_cls = ops.pooling_attention(q, k, v, has_cls=True, residual="no_cls")
    every = ops.pooling_attention(q, k, v, has_cls=True, residual="all")
    assert torch.equal(no_cls[:, 0], none[:, 0])
    assert torch.equal(no_cls[:, 1:], every[:, 1:])
    torch.testing.assert_close(every[:, 0], none[:, 0] + q[:, :, 0])


def test_cls_row_and_column_get_no_bias(backend) -> None:
    case = AttentionCase((1, 2, 2), (1, 2, 2), residual="none")
    inputs = case.inputs(Guarded(), torch.float32)
    plain = ops.pooling_attention(**{**inputs, "rel_pos": None}, **case.options)
    shifted = ops.pooling_attention(**{**inputs, "rel_pos": inputs["rel_pos"] - 1e4}, **case.options)
    torch.testing.assert_close(shifted[:, 0], plain[:, 0])
    # With every grid key pushed away the other rows see the cls key alone.
    torch.testing.assert_close(shifted[:, 1:], inputs["v"][:, None, :, 0].expand_as(shifted[:, 1:]))


@pytest.mark.parametrize("num_k", [5, 40, 700])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["q", "k", "v", "rel_pos"])
def test_nan_and_infinity_propagate_as_in_eager(where: str, bad: float, num_k: int, backend) -> None:
    case = AttentionCase((1, 3, 5), (1, 1, num_k), heads=1, head_dim=16, has_cls=False)
    inputs = case.inputs(Guarded(), torch.float32)
    tensor = inputs[where]
    tensor[0, 0, min(7, tensor.shape[2] - 1), min(3, tensor.shape[3] - 1)] = bad
    out = ops.pooling_attention(**inputs, **case.options)
    expected, _ = reference.pooling_attention(**inputs, **case.options)
    assert torch.equal(out.isnan(), expected.isnan())
    torch.testing.assert_close(out, expected, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_large_scores_do_not_overflow(backend) -> None:
    q, k, v = (200 * torch.randn(1, 1, n, 32) for n in (9, 50, 50))
    out = ops.pooling_attention(q, k, v)
    expected, _ = reference.pooling_attention(q.double(), k.double(), v.double(), scale=32**-0.5, has_cls=False)
    torch.testing.assert_close(out.double(), expected, rtol=1e-3, atol=1e-2)


def test_one_long_row_of_keys_matches_float64(backend) -> None:
    check(AttentionCase((1, 1, 3), (8, 31, 33), heads=1), torch.float32)


def test_same_input_gives_the_same_bits_again(backend) -> None:
    case = AttentionCase((4, 14, 14), (4, 7, 7), heads=4)
    inputs = case.inputs(Guarded(), torch.float32)
    first = ops.pooling_attention(**inputs, **case.options)
    assert all(torch.equal(first, ops.pooling_attention(**inputs, **case.options)) for _ in range(3))
