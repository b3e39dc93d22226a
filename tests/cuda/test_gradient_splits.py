"""The gradient of q with keys split among blocks: the plan for every published shape, and the results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cuda.kernel_cases import HALF
from tests.cuda.layers import ATTENTION_KERNELS, LAYERS, MULTIPROCESSORS, attention_sizes, grid_of_rel_pos
from tests.cuda.test_pooling_attention_backward import NAMES, Problem
from tests.cuda.test_pooling_attention_backward_float32 import Float32Problem
from tests.ops.attention_cases import AttentionCase

SPLIT_IN_HALF = [
    AttentionCase((1, 7, 7), (4, 13, 16), heads=1),
    AttentionCase((1, 3, 5), (1, 27, 31), batch=2, heads=1, head_dim=72, has_cls=False, rel_pos=False, residual="all"),
    AttentionCase((1, 9, 9), (2, 27, 28), heads=1, head_dim=64, residual="none"),
    AttentionCase((1, 2, 2), (1, 33, 37), heads=1, head_dim=48, residual="all"),
    AttentionCase((1, 2, 3), (6, 10, 11), heads=1, head_dim=128),
]
SPLIT_IN_FLOAT32 = [
    AttentionCase((1, 8, 9), (4, 9, 11), heads=1),
    AttentionCase((1, 3, 5), (1, 25, 17), batch=2, heads=1, head_dim=72, has_cls=False, rel_pos=False, residual="all"),
    AttentionCase((1, 3, 3), (3, 11, 13), heads=1, head_dim=64, residual="none"),
    AttentionCase((1, 2, 2), (1, 21, 23), heads=1, head_dim=48, residual="all"),
    AttentionCase((1, 2, 3), (4, 9, 10), heads=1, head_dim=128),
]


def plan_of(emulation, case: AttentionCase, dtype: str, tf32: bool, multiprocessors: int) -> dict[str, Any]:
    sizes = (case.batch, case.heads, case.num_q, case.num_k, case.head_dim)
    grid = case.grid_k if case.rel_pos else (0, 0, 0)
    return emulation.plan_of_attention_backward(dtype, tf32, sizes, grid, multiprocessors)


def problem_of(case: AttentionCase, dtype: torch.dtype, tf32: bool = False, seed: int = 0) -> Problem:
    return Float32Problem(case, tf32, seed) if dtype == torch.float32 else Problem(case, dtype, seed)


KINDS = [
    *(pytest.param(case, dtype, False, id=f"{case}-{dtype}") for case in SPLIT_IN_HALF for dtype in HALF),
    *(
        pytest.param(case, torch.float32, tf32, id=f"{case}-{'tf32' if tf32 else 'ieee'}")
        for case in SPLIT_IN_FLOAT32
        for tf32 in (False, True)
    ),
]
ONE_OF_EACH = [
    pytest.param(SPLIT_IN_HALF[0], torch.bfloat16, False, id="bfloat16"),
    pytest.param(SPLIT_IN_FLOAT32[0], torch.float32, False, id="ieee"),
    pytest.param(SPLIT_IN_FLOAT32[0], torch.float32, True, id="tf32"),
]


@pytest.mark.parametrize("multiprocessors", [4, 64])
@pytest.mark.parametrize(("case", "dtype", "tf32"), KINDS)
def test_gradients_with_split_keys_match_float64(emulation, case, dtype, tf32, multiprocessors) -> None:
    plan = plan_of(emulation, case, str(dtype).removeprefix("torch."), tf32, multiprocessors)
    assert plan["key_parts"] > 1
    assert case.num_k < plan["key_parts"] * plan["key_part_tiles"] * plan["tile"], "the last part has fewer keys"
    problem = problem_of(case, dtype, tf32)
    problem.check(problem.run(emulation, multiprocessors=multiprocessors))
    problem.make.assert_untouched()


@pytest.mark.parametrize(("case", "dtype", "tf32"), ONE_OF_EACH)
def test_gradients_are_the_same_bits_in_every_order_of_threads(emulation, case, dtype, tf32) -> None:
    problem = problem_of(case, dtype, tf32)
    runs = [problem.run(emulation, seed, multiprocessors=64) for seed in range(4)]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))
    problem.check(runs[3])


def run_both(emulation, problem: Problem, **options: Any) -> list[tuple[str, Tensor, Tensor]]:
    """Each gradient with keys split, and without."""
    split, whole = (problem.run(emulation, multiprocessors=count, **options) for count in (64, 1))
    return [(name, a, b) for name, a, b in zip(NAMES, split, whole, strict=True) if a is not None]


@pytest.mark.parametrize(("case", "dtype", "tf32"), ONE_OF_EACH)
def test_split_and_whole_differ_by_rounding_alone(emulation, case, dtype, tf32) -> None:
    """Also that there is a difference: a split that adds up nothing else would show nothing."""
    found = run_both(emulation, problem_of(case, dtype, tf32))
    for name, split, whole in found:
        torch.testing.assert_close(split, whole, rtol=2e-2 if dtype != torch.float32 else 1e-4, atol=1e-3, msg=name)
    assert not all(torch.equal(split, whole) for _, split, whole in found)


@pytest.mark.parametrize(("case", "dtype", "tf32"), ONE_OF_EACH)
@pytest.mark.parametrize(
    "needs",
    [
        (True, False, False, False),
        (False, False, False, True),
        (False, True, False, False),
        (False, False, True, False),
        (True, False, True, True),
    ],
)
def test_only_the_gradients_that_are_asked_for_are_made(emulation, case, dtype, tf32, needs) -> None:
    problem = problem_of(case, dtype, tf32)
    everything = problem.run(emulation, multiprocessors=64)
    some = problem.run(emulation, multiprocessors=64, needs=needs)
    for one, all_of_it, need in zip(some, everything, needs, strict=True):
        assert one is None if not need or all_of_it is None else torch.equal(one, all_of_it)


@pytest.mark.parametrize(("case", "dtype", "tf32"), ONE_OF_EACH)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["k", "v", "rel_pos"])
def test_what_is_not_finite_reaches_the_gradients_it_reaches_without_a_split(
    emulation, case, dtype, tf32, where, bad
) -> None:
    problem = problem_of(case, dtype, tf32)
    tensor = problem.inputs[where]
    tensor[0, 0, min(290, tensor.shape[2] - 1), 3] = bad
    problem.reference()
    found = run_both(emulation, problem)
    for name, split, whole in found:
        assert torch.equal(split.isfinite(), whole.isfinite()), name
    assert not all(whole.isfinite().all() for _, _, whole in found)


@pytest.mark.parametrize(("case", "dtype", "tf32"), ONE_OF_EACH)
def test_parts_whose_keys_are_all_excluded_add_nothing(emulation, case, dtype, tf32) -> None:
    problem = problem_of(case, dtype, tf32)
    problem.inputs["rel_pos"][..., : case.grid_k[0] - 1] = -torch.inf  # all but the last frame
    problem.reference()
    problem.check(problem.run(emulation, multiprocessors=64))


# ---- How a problem is divided ----


@pytest.mark.parametrize(("dtype", "tf32"), ATTENTION_KERNELS)
@pytest.mark.parametrize("gpu", MULTIPROCESSORS)
@pytest.mark.parametrize("batch", [1, 8])
def test_every_published_layer_is_covered_once_and_split_only_where_the_model_gains(
    emulation, batch, gpu, dtype, tf32
) -> None:
    chip = MULTIPROCESSORS[gpu]
    for where, layer in LAYERS:
        sizes, grid = attention_sizes(layer, batch), grid_of_rel_pos(layer)
        plan = emulation.plan_of_attention_backward(dtype, tf32, sizes, grid, chip)
        parts, tiles = plan["key_parts"], plan["key_part_tiles"]
        assert (parts - 1) * tiles < plan["key_tiles"] <= parts * tiles, f"{where}: keys left out, or a part without"
        whole = batch * layer.heads * plan["query_tiles"]
        assert plan["q_blocks"] == whole * parts, where
        if parts == 1:
            assert plan["key_sum_bytes"] == 0, where
            continue
        assert whole < 2 * chip and plan["q_blocks"] <= 4 * chip and parts <= 16, (where, plan)
        assert plan["cost"] < plan["cost_of_one_part"], (where, plan)
        rows, entries = plan["q_blocks"] * plan["tile"], sum(grid)
        assert plan["key_sum_bytes"] <= rows * (layer.head_dim + entries + 2) * 4 + (1 << 10), (where, plan)


MVIT_V2_S = {layer.block: layer for where, layer in LAYERS if where.startswith("mvit_v2_s_16x4 ")}


@pytest.mark.parametrize(("dtype", "tf32"), ATTENTION_KERNELS)
def test_one_clip_is_split_in_the_last_stage(emulation, dtype, tf32) -> None:
    """Of 1569 keys in every dtype; of 393, as in the last block, only where a step takes longer than in half."""

    def parts(block: int, batch: int) -> int:
        layer = MVIT_V2_S[block]
        sizes = attention_sizes(layer, batch)
        return emulation.plan_of_attention_backward(dtype, tf32, sizes, grid_of_rel_pos(layer), 132)["key_parts"]

    assert (MVIT_V2_S[14].num_kv, MVIT_V2_S[15].num_kv, MVIT_V2_S[15].num_q) == (1569, 393, 393)
    assert parts(14, 1) > 1 and (parts(15, 1) > 1) == (dtype == "float32")
    assert parts(14, 8) == parts(15, 8) == 1
