"""How the CUDA pooling kernels divide every published layer: pure functions of shapes, run on the host."""

from __future__ import annotations

import pytest

from mvit_kernels import models
from mvit_kernels.problem import Grid, Pool, tokens
from tests.cuda.layers import LAYERS, LEAST_SHARED_BYTES, branch, branches_of, pool_plan
from tests.ops.pool_cases import K3, S1, pool


def reads(thw: Grid, pooling: Pool, at_once: Grid) -> int:
    """Tokens read when outputs are made `at_once` at a time, by counting."""
    found = 1
    for n, k, s, p, outputs, count in zip(
        thw, pooling.kernel, pooling.stride, pooling.padding, pooling.out_grid(thw), at_once, strict=True
    ):
        runs = [range(first, min(first + count, outputs)) for first in range(0, outputs, count)]
        found *= sum(len({o * s - p + tap for o in run for tap in range(k)} & set(range(n))) for run in runs)
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_published_windows_of_three_are_cut_into_tiles_that_fit_every_gpu(emulation, dtype: str) -> None:
    for where, layer in LAYERS:
        for of, cut in zip(branches_of(layer), pool_plan(emulation, 1, layer, dtype), strict=True):
            assert (cut["blocks"] > 0) == (of["kernel"][1:] == (3, 3)) == (cut["strip_blocks"] == 0), where
            assert cut["shared_bytes"] <= LEAST_SHARED_BYTES, where
            assert cut["lines"] * layer.head_dim // 2 <= 192, "a thread for each line and two channels"


def test_the_count_of_reads_is_that_of_the_tiles(emulation) -> None:
    for _, layer in LAYERS:
        for batch in (1, 8):
            for of, cut in zip(branches_of(layer), pool_plan(emulation, batch, layer), strict=True):
                pooling = Pool(of["mode"], of["kernel"], of["stride"], of["padding"])
                at_once = (cut["run"], cut["lines"], 7) if cut["blocks"] else (1, 1, 4)
                assert cut["tokens_read"] == reads(of["thw"], pooling, at_once)
                assert cut["tokens_needed"] == reads(of["thw"], pooling, pooling.out_grid(of["thw"]))


def test_a_batch_that_fills_a_gpu_reads_a_token_about_once(emulation) -> None:
    """All that is read again is the halo of a tile of 4 x 7 outputs."""
    for where, layer in LAYERS:
        for of, cut in zip(branches_of(layer), pool_plan(emulation, 64, layer), strict=True):
            most = 2.0 if of["stride"][1] < 2 else 1.35 if of["stride"][1] < of["kernel"][1] else 1.0
            assert cut["tokens_read"] <= most * cut["tokens_needed"], (where, cut)


def test_tiles_read_less_than_strips_in_every_layer_of_mvit_v2_s(emulation) -> None:
    """Prints the table of docs/performance.md with `-s`."""
    for layer in models.layer_shapes("mvit_v2_s_16x4"):
        cuts = [pool_plan(emulation, batch, layer) for batch in (8, 1)]
        for i, of in enumerate(branches_of(layer)[:2]):
            pooling = Pool(of["mode"], of["kernel"], of["stride"], of["padding"])
            needed = cuts[0][i]["tokens_needed"]
            strips, full, alone = (
                n / needed
                for n in (reads(of["thw"], pooling, (1, 1, 4)), cuts[0][i]["tokens_read"], cuts[1][i]["tokens_read"])
            )
            megabytes = 2 * layer.heads * layer.head_dim * needed / 1e6
            name = f"{layer.block} {('q', 'kv')[i]}"
            print(f"| {name} | {of['stride'][1]} | {megabytes:.2f} | {strips:.2f} | {full:.2f} | {alone:.2f} |")
            assert full <= alone < strips


def test_a_small_batch_is_cut_along_t_and_a_large_one_is_not(emulation) -> None:
    layer = models.layer_shapes("mvit_v2_s_16x4")[0]
    alone, many = pool_plan(emulation, 1, layer), pool_plan(emulation, 64, layer)
    assert sum(cut["blocks"] for cut in alone) > 200 and alone[0]["run"] < 8
    assert {cut["run"] for cut in many} == {8}


@pytest.mark.parametrize(
    "pooling",
    [pool("conv", (1, 5, 5), S1), pool("conv", K3, (2, 1, 1)), pool("conv", K3, (1, 1, 2)), pool("avg", K3, S1)],
    ids=str,
)
def test_other_windows_are_cut_into_strips(emulation, pooling: Pool) -> None:
    (cut,) = emulation.pool3d_norm_plan("float32", 2, 3, 64, True, [branch((4, 9, 9), pooling)])
    outputs = tokens(pooling.out_grid((4, 9, 9)))
    assert cut["blocks"] == 0 and cut["strip_blocks"] >= 2 * 3 * outputs / 128
