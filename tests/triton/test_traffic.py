"""The model of bytes moved, on every published layer."""

from __future__ import annotations

import pytest

from mvit_kernels.cli import main
from mvit_kernels.models import layer_shapes, list_models
from mvit_kernels.problem import tokens, touched_grid
from mvit_kernels.triton_kernels import launch, matrix, traffic
from mvit_kernels.triton_kernels.blocks import split


@pytest.mark.parametrize("model", list_models())
def test_pooling_moves_at_most_15_percent_more_than_it_must(model: str) -> None:
    for layer in layer_shapes(model):
        if layer.pool_kv is not None:
            found = traffic.pooling(layer, 2)
            assert found.must <= found.does <= 1.15 * found.must < found.eager, layer


SMALLEST_L2 = 6 << 20
"""A GeForce RTX 3090. An A100 has 40 MiB, a die of an MI300X 4 with 256 behind them."""

H100_FLOP_PER_BYTE = 989e12 / 3.35e12


@pytest.mark.parametrize(("model", "block"), [("mvit_v2_s_16x4", 0), ("mvit_v2_s_16x4", 1), ("mvit_v2_b", 0)])
def test_the_tiles_of_the_pooling_kernel_fetch_a_token_once(model: str, block: int) -> None:
    layer = layer_shapes(model)[block]
    for pool in (layer.pool_q, layer.pool_kv):
        assert pool is not None
        outputs = tokens(pool.out_grid(layer.grid))
        rows, _ = launch.pool_rows(split(layer.head_dim), outputs, 8192 // 2)
        touched = tokens(touched_grid(pool, layer.grid).thw)
        fetched = traffic.pool_fetches(layer, pool, rows, SMALLEST_L2 // (2 * layer.head_dim))
        assert touched + outputs <= fetched + outputs <= 1.15 * (touched + outputs)


def test_a_cache_too_small_for_two_lines_fetches_tokens_again() -> None:
    layer = layer_shapes("mvit_v2_b")[0]
    assert layer.pool_q is not None
    assert traffic.pool_fetches(layer, layer.pool_q, 32, 100) > 1.5 * tokens(layer.grid)


@pytest.mark.parametrize("model", list_models())
def test_rel_pos_rows_made_in_the_attention_kernel_would_save_a_few_percent_at_best(model: str) -> None:
    # At half of the tensor cores' peak, which is more than attention kernels of this size reach.
    for layer in matrix.distinct(layer_shapes(model)):
        if any(layer.table_rows):
            found = traffic.fused_rel_pos(layer, 2, 128)
            gain = found.saved * H100_FLOP_PER_BYTE / 2 - found.flop
            assert gain <= 0.04 * found.attention, layer


def test_the_cost_of_fusing_counts_each_coordinate_of_a_tile_once() -> None:
    layer = next(layer for layer in layer_shapes("mvit_v2_s_16x4") if layer.grid_q == (8, 7, 7))
    # Tiles of 49 queries: one t, seven h and seven w each, tables of 8, 14 and 14 rows padded to 16.
    found = traffic.fused_rel_pos(layer, 2, 49)
    entries = sum(layer.grid_kv)
    assert found.flop == 2 * 96 * (1 + 7 + 7) * 16 - 2 * 96 * entries
    assert found.saved == 8 * entries + 192


@pytest.mark.parametrize("model", matrix.MODELS)
def test_attention_moves_less_than_every_alternative(model: str) -> None:
    for layer in layer_shapes(model):
        found = traffic.attention(layer, 2)
        assert found.must <= found.does < found.flex <= found.sdpa < found.eager, layer


def test_the_command_prints_the_table_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["triton-report", "--bytes", "--model", "mvit_v2_s_16x4"]) == 0
    text = capsys.readouterr().out
    assert "a model, not measured" in text
    assert any(line.startswith("0 | 25089 | 25089 | 393 | attention | ") for line in text.splitlines())


def test_the_report_refuses_to_run_in_the_interpreter(monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main(["triton-report", "--arch", "sm90"]) == 2
    assert "TRITON_INTERPRET=1 is set" in capsys.readouterr().err
