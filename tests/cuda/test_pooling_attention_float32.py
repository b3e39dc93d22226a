"""The CUDA pooling_attention kernels for float32, IEEE and TF32, run by the emulation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mvit_kernels import reference
from mvit_kernels.reference.pooling_attention import expand_rel_pos
from tests.cuda.emulated import Aligned, pooling_attention
from tests.cuda.kernel_cases import attention_of_more_than_a_few_numbers
from tests.numerics import assert_within_rule, double
from tests.ops.attention_cases import AttentionCase


def tf32(x: Tensor) -> Tensor:
    """Rounded to 10 bits of mantissa, halves away from zero."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def eager_tf32(q: Tensor, k: Tensor, v: Tensor, rel_pos: Tensor | None, **keywords) -> tuple[Tensor, Tensor]:
    """The reference with both products as TF32 tensor cores make them."""
    cls, exact_q = int(keywords["has_cls"]), q
    scores = keywords["scale"] * (tf32(q) @ tf32(k).transpose(-1, -2))
    if rel_pos is not None:
        bias = expand_rel_pos(rel_pos[:, :, cls:], keywords["grid_k"])
        scores = scores + torch.nn.functional.pad(bias, (cls, 0, cls, 0))
    out = tf32(scores.softmax(-1)) @ tf32(v)
    first = {"none": out.shape[2], "all": 0, "no_cls": cls}[keywords["residual"]]
    out = torch.cat((out[:, :, :first], out[:, :, first:] + exact_q[:, :, first:]), dim=2)
    return out.transpose(1, 2), scores.logsumexp(-1)


def check(emulation, case: AttentionCase, *, tf32: bool = False, seed: int = 0, **options: object) -> None:
    multiprocessors = options.pop("multiprocessors", 1)
    make = Aligned(seed)
    inputs, keywords = case.inputs(make, torch.float32), {**case.options, **options}
    out, lse = pooling_attention(emulation, **inputs, **keywords, tf32=tf32, multiprocessors=multiprocessors, seed=seed)
    make.assert_untouched()
    eager, eager_lse = (eager_tf32 if tf32 else reference.pooling_attention)(**inputs, **keywords)
    exact = dict(zip(inputs, double(list(inputs.values())), strict=True))
    oracle, oracle_lse = reference.pooling_attention(**exact, **keywords)
    # TF32 has the mantissa of float16.
    dtype = torch.float16 if tf32 else torch.float32
    assert_within_rule(out, eager, oracle, dtype=dtype)
    assert_within_rule(lse, eager_lse, oracle_lse, dtype=dtype)


@pytest.mark.parametrize("tf32", [False, True], ids=["ieee", "tf32"])
@pytest.mark.parametrize("case", attention_of_more_than_a_few_numbers(16), ids=str)
def test_attention_matches_float64(emulation, case, tf32) -> None:
    check(emulation, case, tf32=tf32)


@pytest.mark.parametrize("tf32", [False, True], ids=["ieee", "tf32"])
@pytest.mark.parametrize("seed", range(1, 7))
def test_attention_matches_float64_in_every_order_of_threads(emulation, seed, tf32) -> None:
    check(emulation, AttentionCase((1, 8, 9), (2, 5, 5), heads=1), tf32=tf32, seed=seed)


@pytest.mark.parametrize("tf32", [False, True], ids=["ieee", "tf32"])
@pytest.mark.parametrize("num_k", [1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 97])
def test_attention_matches_float64_at_every_tail_of_a_key_tile(emulation, num_k, tf32) -> None:
    dim = (48, 64, 80, 128)[num_k % 4]
    case = AttentionCase((1, 3, 5), (1, 1, num_k), heads=1, head_dim=dim, has_cls=False, rel_pos=num_k % 2 == 0)
    check(emulation, case, tf32=tf32)


@pytest.mark.parametrize("tf32", [False, True], ids=["ieee", "tf32"])
@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("scale", [-0.3, 0.0, 3.0])
def test_any_scale_is_right(emulation, scale, rel_pos, tf32) -> None:
    check(emulation, AttentionCase((1, 3, 5), (1, 9, 9), heads=1, rel_pos=rel_pos), scale=scale, tf32=tf32)


def test_without_tf32_no_operand_is_rounded(emulation) -> None:
    case = AttentionCase((1, 3, 3), (1, 4, 4), heads=1, rel_pos=False, residual="none")
    inputs = case.inputs(Aligned(), torch.float32)
    exact, _ = pooling_attention(emulation, **inputs, **case.options)
    rounded, _ = pooling_attention(emulation, **inputs, **case.options, tf32=True)
    expected, _ = reference.pooling_attention(**inputs, **case.options)
    assert (exact - expected).abs().max() < 1e-6 < 1e-4 < (rounded - expected).abs().max()


@pytest.mark.parametrize("tf32", [False, True], ids=["ieee", "tf32"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["q", "k", "v", "rel_pos"])
def test_nan_and_infinity_propagate_as_in_eager(emulation, where, bad, tf32) -> None:
    case = AttentionCase((1, 3, 5), (1, 1, 70), heads=1, head_dim=16, has_cls=False)
    inputs = case.inputs(Aligned(), torch.float32)
    tensor = inputs[where]
    tensor[0, 0, min(7, tensor.shape[2] - 1), 3] = bad
    out, _ = pooling_attention(emulation, **inputs, **case.options, tf32=tf32)
    expected, _ = reference.pooling_attention(**inputs, **case.options)
    assert torch.equal(out.isnan(), expected.isnan())
    torch.testing.assert_close(out, expected, equal_nan=True, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("x", [0.0, 1.0, -1.0, 1 + 2**-11, -1 - 2**-11, 1 + 3 * 2**-12, 3e38, 2**-130, torch.inf])
def test_tf32_rounds_halves_away_from_zero(emulation, x) -> None:
    assert emulation.tf32(x) == (x if x == torch.inf else tf32(torch.tensor([x])).item())


def test_tf32_keeps_nan(emulation) -> None:
    assert torch.tensor(emulation.tf32(torch.nan)).isnan()
