"""How the CUDA kernels divide every published layer: what has to hold of each plan, batch 1 and 8, on any GPU."""

from __future__ import annotations

from math import prod

import pytest
import torch

from mvit_kernels import models
from mvit_kernels.backends import query_pooling_model
from mvit_kernels.backends.cuda import MAX_QUERY_ROW, max_row
from mvit_kernels.models import LayerShape
from mvit_kernels.problem import tokens
from tests.cuda.layers import (
    ATTENTION_KERNELS,
    LAYERS,
    LEAST_SHARED_BYTES,
    MULTIPROCESSORS,
    attention_plans,
    branches_of,
    grid_of_rel_pos,
    pool_plan,
)
from tests.cuda.layers import attention_sizes as sizes

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}

batches = pytest.mark.parametrize("batch", [1, 8])
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def up(n: int, size: int) -> int:
    return -(-n // size)


@batches
@pytest.mark.parametrize("gpu", MULTIPROCESSORS)
@pytest.mark.parametrize(("dtype", "tf32"), ATTENTION_KERNELS)
def test_attention_leaves_a_gpu_idle_only_where_splitting_gains_little(emulation, batch, gpu, dtype, tf32) -> None:
    """Where keys are not split a multiprocessor has a block, or there are few keys to split."""
    for where, layer, plan in attention_plans(emulation, dtype, tf32, batch, MULTIPROCESSORS[gpu]):
        steps = up(layer.num_kv, plan["keys"])
        if plan["splits"] == 1:
            assert plan["blocks"] >= MULTIPROCESSORS[gpu] or steps <= FEW_STEPS, (where, plan)
        else:
            assert plan["blocks"] // plan["splits"] < 2 * MULTIPROCESSORS[gpu], (where, plan)
        # The parts are no more than some times what the layer itself writes in float32.
        assert plan["scratch_bytes"] <= 16 * 4 * prod(sizes(layer, batch)[:3]) * (layer.head_dim + 2)


FEW_STEPS = 13


@batches
@dtypes
def test_gradients_of_attention_cover_queries_and_keys_once(emulation, batch, dtype) -> None:
    for where, layer in LAYERS:
        plan = emulation.plan_of_attention_backward(dtype, False, sizes(layer, batch), grid_of_rel_pos(layer), 1)
        tile, heads = plan["tile"], batch * layer.heads
        assert (plan["query_tiles"] - 1) * tile < layer.num_q <= plan["query_tiles"] * tile, where
        assert (plan["key_tiles"] - 1) * tile < layer.num_kv <= plan["key_tiles"] * tile, where
        assert (plan["parts"] - 1) * plan["part_tiles"] < plan["query_tiles"], f"{where}: a part without queries"
        assert plan["query_tiles"] <= plan["parts"] * plan["part_tiles"], f"{where}: queries are left out"
        assert plan["q_blocks"] == heads * plan["query_tiles"], where
        assert plan["kv_blocks"] == heads * plan["key_tiles"] * plan["parts"], where
        fits = plan["shared_bytes"] <= LEAST_SHARED_BYTES
        assert fits == (sum(grid_of_rel_pos(layer)) <= max_row(DTYPES[dtype], layer.head_dim, needs_grad=True)), where
        # As many blocks as are wanted, or as parts of the least length allow.
        assert plan["parts"] == 1 or plan["part_tiles"] >= plan["least_part_tiles"], (where, plan)
        most = max(1, plan["query_tiles"] // plan["least_part_tiles"])
        enough = plan["kv_blocks"] >= plan["wanted_blocks"] * 3 // 4
        assert enough or plan["part_tiles"] == up(plan["query_tiles"], most), (where, plan)


@pytest.mark.parametrize("name", ["mvit_v1_b_16x4", "mvit_v2_s_16x4"])
def test_gradient_of_q_fills_a_gpu_from_batch_8_on(emulation, name) -> None:
    """Prints, with `-s`, the layers at batch 1 whose keys are split, with what the model of time says of them."""
    chip = MULTIPROCESSORS["H100"]

    def plan_of(kernel: tuple[str, bool], layer: LayerShape, batch: int) -> dict[str, int]:
        return emulation.plan_of_attention_backward(*kernel, sizes(layer, batch), grid_of_rel_pos(layer), chip)

    layers = models.layer_shapes(name)
    for kernel in ATTENTION_KERNELS:
        plans = [plan_of(kernel, layer, 1) for layer in layers]
        for layer, plan in zip(layers, plans, strict=True):
            blocks, parts = plan["q_blocks"] // plan["key_parts"], plan["key_parts"]
            times = [plan[cost] // 16 for cost in ("cost_of_one_part", "cost")]
            print(f"{kernel} block {layer.block}: {blocks} blocks, {plan['key_tiles']} tiles, {parts} parts, {times}")
        whole, split = (sum(plan[cost] for plan in plans) / 16e3 for cost in ("cost_of_one_part", "cost"))
        print(f"{name} {kernel}: {whole:.0f} thousand cycles, {split:.0f} with keys split where it pays")
    plans = [plan_of(ATTENTION_KERNELS[0], layer, 8) for layer in layers]
    steps = sum(up(plan["q_blocks"], 2 * chip) * plan["key_tiles"] for plan in plans)
    full = sum(plan["q_blocks"] * plan["key_tiles"] for plan in plans) / (2 * chip)
    assert all(plan["key_parts"] == 1 and plan["q_blocks"] >= 2 * chip for plan in plans)
    assert steps < 1.25 * full


@batches
@dtypes
def test_scratch_memory_of_the_gradients_is_bounded(emulation, batch, dtype) -> None:
    """Some numbers for each query, the rows of relative position again, sums as large as the blocks that make them."""
    for where, layer in LAYERS:
        plan = emulation.plan_of_attention_backward(dtype, False, sizes(layer, batch), grid_of_rel_pos(layer), 1)
        heads, dim = batch * layer.heads, layer.head_dim
        per_query = 16 + 4 * (sum(grid_of_rel_pos(layer)) + 7)
        rest = plan["scratch_bytes"] - plan["sum_bytes"]
        assert rest <= heads * plan["query_tiles"] * plan["tile"] * per_query + (1 << 10), where
        most = (plan["wanted_blocks"] + heads * plan["key_tiles"]) * plan["tile"] * dim * 4 * 2 + (1 << 10)
        assert plan["sum_bytes"] <= (most if plan["parts"] > 1 else 0), where


@batches
def test_attention_that_pools_its_queries_covers_and_fits(emulation, batch) -> None:
    for where, layer in LAYERS:
        if layer.pool_q is None:
            continue
        args = ("bfloat16", sizes(layer, batch), grid_of_rel_pos(layer), layer.pool_q.kernel)
        plan = emulation.plan_of_pooled_query_attention(*args)
        long_rows = sum(grid_of_rel_pos(layer)) > MAX_QUERY_ROW
        assert plan["reason"] == ("no kernel for this many relative-position entries" if long_rows else None), where
        if long_rows:
            continue
        assert plan["rows"] == query_pooling_model.queries_of_block(layer.head_dim), where
        assert plan["blocks"] == batch * layer.heads * up(layer.num_q, plan["rows"]), where
        assert layer.num_kv <= plan["keys_of_split"], where
        assert plan["shared_bytes"] <= LEAST_SHARED_BYTES, where


@batches
@dtypes
def test_pooling_covers_every_output_once(emulation, batch, dtype) -> None:
    for where, layer in LAYERS:
        for of, cut in zip(branches_of(layer), pool_plan(emulation, batch, layer, dtype), strict=True):
            t, h, w = (
                (n + 2 * p - k) // s + 1
                for n, k, s, p in zip(of["thw"], of["kernel"], of["stride"], of["padding"], strict=True)
            )
            heads = batch * layer.heads * up(layer.head_dim, 128)
            if cut["blocks"]:
                assert 1 <= cut["lines"] <= h and 1 <= cut["run"] <= t, where
                assert cut["blocks"] == heads * up(t, cut["run"]) * up(h, cut["lines"]) * up(w, 7), where
            else:
                assert cut["strip_blocks"] == heads * up(t * h * up(w, 4) + layer.has_cls, 32), where


@batches
def test_relative_position_covers_every_query_and_table_once(emulation, batch) -> None:
    for where, layer in LAYERS:
        if not any(layer.table_rows):
            continue
        queries, keys = layer.grid_q, layer.grid_kv
        plan = emulation.plan_of_rel_pos(batch, layer.heads, layer.head_dim, layer.has_cls, queries, keys)
        heads, slices = batch * layer.heads, up(layer.head_dim, 128)
        results = heads * layer.num_q * sum(keys)
        assert (plan["blocks"] - 1) * plan["threads"] < results <= plan["blocks"] * plan["threads"], where
        assert plan["strips"] == queries[0] * queries[1] * up(queries[2], plan["strip"]) + layer.has_cls, where
        assert plan["q_blocks"] == heads * slices * up(plan["strips"], plan["strips_of_block"]), where
        entry = 0
        for axis, of, num_q, num_k in zip("thw", plan["axes"], queries, keys, strict=True):
            assert of["entry"] == entry, (where, axis)
            entry += num_k
            assert of["of_index"] * num_q == tokens(queries), (where, axis)
            assert 1 <= of["parts"] <= up(heads * of["of_index"], 64), f"{where} {axis}: a part of too few queries"
            assert of["blocks"] == num_q * slices * up(num_k, 8) * of["parts"], (where, axis)
            assert of["sum_blocks"] == num_q * num_k * slices, (where, axis)
        # Sums of at most about as many blocks as are wanted, 8 rows of a table each.
        most = sum(max(1024, of["blocks"] // of["parts"]) * 2 for of in plan["axes"]) * 8 * layer.head_dim * 4
        assert plan["scratch_bytes"] <= most + (1 << 10), where


def test_published_layers_whose_gradients_go_to_triton_are_those_with_the_longest_rows_in_float32() -> None:
    """Rows have 15 to 60 entries, most of them in the first layer of a stage, whose keys are pooled less."""
    long = {
        (dtype, sum(layer.grid_kv), layer.head_dim)
        for _, layer in LAYERS
        if any(layer.table_rows)
        for dtype in DTYPES
        if sum(layer.grid_kv) > max_row(DTYPES[dtype], layer.head_dim, needs_grad=True)
    }
    assert long == {("float32", 44, 96), ("float32", 57, 96)}


def test_limits_of_rows_with_gradient_are_those_of_the_kernels(emulation) -> None:
    for name, dtype in DTYPES.items():
        for head_dim in range(8, 129, 8):
            kernels = emulation.max_backward_rel_pos_row(name, head_dim, LEAST_SHARED_BYTES)
            assert max_row(dtype, head_dim, needs_grad=True) == kernels, (name, head_dim)
