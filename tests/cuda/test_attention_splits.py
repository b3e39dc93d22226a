"""Attention with keys split among blocks: the plan for every published shape, and the results."""

from __future__ import annotations

import pytest
import torch

from tests.cuda import test_pooling_attention as half
from tests.cuda import test_pooling_attention_float32 as single
from tests.cuda.emulated import Aligned, pooling_attention
from tests.cuda.layers import ATTENTION_KERNELS, LEAST_SHARED_BYTES, MULTIPROCESSORS, attention_plans
from tests.ops.attention_cases import AttentionCase

CASES = [
    AttentionCase((1, 7, 7), (2, 14, 14), heads=1),
    AttentionCase((1, 7, 7), (1, 23, 23), heads=1, rel_pos=False, residual="all"),
    AttentionCase((1, 3, 5), (1, 19, 29), batch=2, head_dim=72, has_cls=False, residual="none"),
    AttentionCase((1, 2, 2), (1, 23, 23), heads=1, head_dim=128, residual="all"),
    AttentionCase((1, 2, 2), (1, 22, 23), heads=3, head_dim=48, rel_pos=False),
]


@pytest.mark.parametrize(("dtype", "tf32"), ATTENTION_KERNELS)
@pytest.mark.parametrize("gpu", MULTIPROCESSORS)
@pytest.mark.parametrize("batch", [1, 8])
def test_every_published_layer_is_covered_once_and_fits(emulation, batch, gpu, dtype, tf32) -> None:
    for where, layer, plan in attention_plans(emulation, dtype, tf32, batch, MULTIPROCESSORS[gpu]):
        assert plan["keys_of_split"] % plan["keys"] == 0, where
        assert (plan["splits"] - 1) * plan["keys_of_split"] < layer.num_kv, f"{where}: a split without keys"
        assert layer.num_kv <= plan["splits"] * plan["keys_of_split"], f"{where}: keys are left out"
        assert plan["shared_bytes"] <= LEAST_SHARED_BYTES, where
        row_tiles = -(-layer.num_q // plan["rows"])
        assert plan["blocks"] == batch * layer.heads * row_tiles * plan["splits"], where
        parts = batch * layer.heads * layer.num_q * (layer.head_dim + 2) * 4
        assert plan["scratch_bytes"] == (plan["splits"] * parts if plan["splits"] > 1 else 0), where


@pytest.mark.parametrize(("dtype", "tf32"), ATTENTION_KERNELS)
def test_split_layers_fill_the_chip_and_full_grids_are_left_alone(emulation, dtype, tf32) -> None:
    split = 0
    for where, layer, plan in attention_plans(emulation, dtype, tf32, 1, 132):
        row_tiles = layer.heads * -(-layer.num_q // plan["rows"])
        if row_tiles >= 2 * 132:
            assert plan["splits"] == 1, where
        split += plan["splits"] > 1
    assert split > 0


@pytest.mark.parametrize("num_k", [393, 1569])
def test_last_stage_of_one_clip_is_split(emulation, num_k) -> None:
    plan = emulation.attention_plan("bfloat16", False, (1, 8, 393, num_k, 96), (8, 7, 7), 132)
    assert plan["splits"] > 1 and plan["blocks"] >= 100
    assert emulation.attention_plan("bfloat16", False, (64, 8, 393, num_k, 96), (8, 7, 7), 132)["splits"] == 1


@pytest.mark.parametrize("multiprocessors", [13, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, "tf32"], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_split_attention_matches_float64(emulation, case, dtype, multiprocessors) -> None:
    name = "float32" if dtype == "tf32" else str(dtype).removeprefix("torch.")
    sizes = (case.batch, case.heads, case.num_q, case.num_k, case.head_dim)
    plan = emulation.attention_plan(name, dtype == "tf32", sizes, case.grid_k, multiprocessors)
    assert plan["splits"] > 1
    if name == "float32":
        single.check(emulation, case, tf32=dtype == "tf32", multiprocessors=multiprocessors)
    else:
        half.check(emulation, case, dtype, multiprocessors=multiprocessors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_split_attention_gives_the_same_bits_in_every_order_of_threads(emulation, dtype) -> None:
    case = AttentionCase((1, 3, 5), (1, 23, 23), heads=1)
    inputs = case.inputs(Aligned(), dtype)
    runs = [pooling_attention(emulation, **inputs, **case.options, multiprocessors=64, seed=seed) for seed in range(4)]
    for out, lse in runs[1:]:
        assert torch.equal(out, runs[0][0]) and torch.equal(lse, runs[0][1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_reach_the_result_from_any_split(emulation, bad, dtype) -> None:
    case = AttentionCase((1, 3, 5), (1, 1, 500), heads=1, head_dim=16, has_cls=False)
    inputs = case.inputs(Aligned(), dtype)
    inputs["rel_pos"][0, 0, 7, 200] = bad
    inputs["k"][0, 0, 290, 3] = bad
    out, _ = pooling_attention(emulation, **inputs, **case.options, multiprocessors=64)
    whole, _ = pooling_attention(emulation, **inputs, **case.options)
    assert whole.isnan().any()
    torch.testing.assert_close(out, whole, equal_nan=True, rtol=0.05, atol=0.05)
