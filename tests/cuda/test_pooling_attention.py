"""The CUDA pooling_attention kernel, run by the emulation, against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from mvit_kernels import reference
from tests.cuda.emulated import Aligned, pooling_attention
from tests.cuda.kernel_cases import ATTENTION, ATTENTION_OF_PUBLISHED_LAYERS, HALF
from tests.numerics import assert_within_rule, double
from tests.ops.attention_cases import AttentionCase

# More relative-position entries than the product with a one-hot matrix takes, and the last that it does.
MANY_ENTRIES = [
    AttentionCase((1, 3, 4), (1, 28, 28), heads=1, has_cls=False, residual="all"),
    AttentionCase((1, 3, 5), (1, 24, 24), heads=1),
    AttentionCase((1, 9, 9), (1, 23, 24), heads=1, head_dim=64),
    AttentionCase((1, 2, 2), (1, 2, 60), heads=1, head_dim=128),
]


def check(
    emulation, case: AttentionCase, dtype: torch.dtype, *, seed: int = 0, multiprocessors: int = 1, **options: object
) -> None:
    make = Aligned(seed)
    inputs, keywords = case.inputs(make, dtype), {**case.options, **options}
    out, lse = pooling_attention(emulation, **inputs, **keywords, multiprocessors=multiprocessors, seed=seed)
    make.assert_untouched()
    eager, eager_lse = reference.pooling_attention(**inputs, **keywords)
    exact = dict(zip(inputs, double(list(inputs.values())), strict=True))
    oracle, oracle_lse = reference.pooling_attention(**exact, **keywords)
    assert_within_rule(out, eager, oracle)
    assert_within_rule(lse, eager_lse, oracle_lse, dtype=dtype)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", ATTENTION + MANY_ENTRIES + ATTENTION_OF_PUBLISHED_LAYERS, ids=str)
def test_attention_matches_float64(emulation, case, dtype) -> None:
    check(emulation, case, dtype)


@pytest.mark.parametrize("seed", range(1, 7))
def test_attention_matches_float64_in_every_order_of_threads(emulation, seed) -> None:
    check(emulation, AttentionCase((1, 8, 9), (2, 7, 7), heads=1), torch.bfloat16, seed=seed)


@pytest.mark.parametrize("num_k", [1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191, 192, 193])
def test_attention_matches_float64_at_every_tail_of_a_key_tile(emulation, num_k) -> None:
    case = AttentionCase((1, 3, 5), (1, 1, num_k), heads=1, head_dim=48, has_cls=False, rel_pos=num_k % 2 == 0)
    check(emulation, case, torch.float16)


@pytest.mark.parametrize("rel_pos", [False, True])
@pytest.mark.parametrize("scale", [-0.3, 0.0, 3.0])
def test_any_scale_is_right(emulation, scale, rel_pos) -> None:
    check(emulation, AttentionCase((1, 3, 5), (1, 9, 9), heads=1, rel_pos=rel_pos), torch.float16, scale=scale)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["q", "k", "v", "rel_pos"])
def test_nan_and_infinity_propagate_as_in_eager(emulation, where, bad) -> None:
    case = AttentionCase((1, 3, 5), (1, 1, 150), heads=1, head_dim=16, has_cls=False)
    inputs = case.inputs(Aligned(), torch.bfloat16)
    tensor = inputs[where]
    tensor[0, 0, min(7, tensor.shape[2] - 1), 3] = bad
    out, _ = pooling_attention(emulation, **inputs, **case.options)
    expected, _ = reference.pooling_attention(**inputs, **case.options)
    assert torch.equal(out.isnan(), expected.isnan())
    torch.testing.assert_close(out, expected, equal_nan=True, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("has_cls", [False, True])
@pytest.mark.parametrize("scale", [0.1, 3.0, -0.2, 0.0])
@pytest.mark.parametrize("excluded", ["a key", "a line", "all of an axis", "all but one", "one NaN"])
def test_relative_position_may_exclude_keys(emulation, excluded, scale, has_cls) -> None:
    case = AttentionCase((1, 3, 5), (2, 7, 9), heads=1, head_dim=16, has_cls=has_cls)
    inputs, first = case.inputs(Aligned(), torch.bfloat16), int(has_cls)
    row = inputs["rel_pos"][0, 0, 4]
    changes = {"a key": [0, 2, 9], "a line": [11], "all of an axis": range(2, 9), "all but one": range(3, 9)}
    row[list(changes.get(excluded, [5]))] = torch.nan if excluded == "one NaN" else -torch.inf
    inputs["rel_pos"][0, 0, :first] = 0
    options = {**case.options, "scale": scale}
    out, lse = pooling_attention(emulation, **inputs, **options)
    exact = dict(zip(inputs, double(list(inputs.values())), strict=True))
    oracle, oracle_lse = reference.pooling_attention(**exact, **options)
    eager, _ = reference.pooling_attention(**inputs, **options)
    assert out.isnan().any() == (excluded == "one NaN" or (excluded == "all of an axis" and not has_cls))
    assert torch.equal(out.isnan(), oracle.isnan())
    assert_within_rule(*(x[~oracle.isnan()] for x in (out, eager, oracle)))
    finite = oracle_lse.isfinite()
    torch.testing.assert_close(lse[finite].double(), oracle_lse[finite], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_large_relative_position_keeps_its_small_differences(emulation, dtype) -> None:
    case = AttentionCase((1, 3, 5), (2, 7, 7), heads=1)
    inputs = case.inputs(Aligned(), dtype)
    inputs["rel_pos"] = inputs["rel_pos"] + 100  # three entries: 300 on every score but the cls token's
    out, _ = pooling_attention(emulation, **inputs, **case.options)
    exact = dict(zip(inputs, double(list(inputs.values())), strict=True))
    oracle, _ = reference.pooling_attention(**exact, **case.options)
    assert_within_rule(out, reference.pooling_attention(**inputs, **case.options)[0], oracle)


def test_large_scores_do_not_overflow(emulation) -> None:
    case = AttentionCase((1, 3, 3), (1, 10, 10), heads=1, has_cls=False, rel_pos=False, residual="none")
    inputs = {name: t if t is None else 100 * t for name, t in case.inputs(Aligned(), torch.bfloat16).items()}
    out, _ = pooling_attention(emulation, **inputs, **case.options)
    exact = dict(zip(inputs, double(list(inputs.values())), strict=True))
    oracle, _ = reference.pooling_attention(**exact, **case.options)
    torch.testing.assert_close(out.double(), oracle, rtol=2e-2, atol=1)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("rise", [1.0, 5.0, 40.0])
def test_scores_may_rise_and_fall_from_tile_to_tile(emulation, rise, dtype) -> None:
    """By less than a probability may exceed 1 before sums and outputs are rescaled, and by more."""
    case = AttentionCase((1, 3, 6), (1, 1, 400), heads=1, head_dim=16, has_cls=False, rel_pos=False, residual="none")
    inputs = case.inputs(Aligned(), dtype)
    inputs["q"][..., 0] = 4 * torch.tensor([1.0, -1.0, 0.5]).repeat(6)  # scale: 1 / 4
    inputs["k"][..., 0] = rise * (torch.arange(400) // 64)
    out, lse = pooling_attention(emulation, **inputs, **case.options)
    exact = dict(zip(inputs, double(list(inputs.values())), strict=True))
    oracle, oracle_lse = reference.pooling_attention(**exact, **case.options)
    eager, eager_lse = reference.pooling_attention(**inputs, **case.options)
    assert_within_rule(out, eager, oracle)
    assert_within_rule(lse, eager_lse, oracle_lse, dtype=dtype)


def test_misaligned_rows_are_an_error_of_the_emulation(emulation) -> None:
    q = torch.zeros(1, 1, 9, 48, dtype=torch.float16)
    odd = torch.zeros(1, 1, 9, 52, dtype=torch.float16)[..., 1:49]
    with pytest.raises(emulation.Error, match="misaligned"):
        pooling_attention(
            emulation, odd, q, q, rel_pos=None, grid_k=(1, 3, 3), scale=1.0, has_cls=False, residual="none"
        )
