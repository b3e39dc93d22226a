"""The published configurations: layer shapes, parameter counts, names."""

from __future__ import annotations

from itertools import groupby

import pytest
import torch

from mvit_kernels import models

# Lq/Lkv of every block, "x n" for n blocks in a row.
TOKENS = {
    "mvit_v1_b_16x4": "25089/393, 6273/1569, 6273/393, 1569/1569, 1569/393 x10, 393/1569, 393/393",
    "mvit_v1_b_32x3": "50177/785 x2, 12545/3137, 12545/785 x2, 3137/3137, 3137/785 x15, 785/3137, 785/785 x2",
    "pytorchvideo_mvit_base_32x3": "50177/785, 12545/3137, 12545/785, 3137/3137, 3137/785 x10, 785/3137, 785/785",
    "mvit_v2_s_16x4": "25089/393, 6273/1569, 6273/393, 1569/1569, 1569/393 x10, 393/1569, 393/393",
    "mvit_v2_b_32x3": "50177/785 x2, 12545/3137, 12545/785 x2, 3137/3137, 3137/785 x15, 785/3137, 785/785 x2",
    "mvit_v2_l_40x3": "121681/2001 x2, 30421/8001, 30421/2001 x5, 8001/8001, 8001/2001 x35, 2001/8001, 2001/2001 x3",
    "maskfeat_s_16x4_pretrain": "25089/393, 6273/1569, 6273/393, 1569/1569, 1569/393 x12",
    "maskfeat_s_16x4_finetune": "25089/393, 6273/1569, 6273/393, 1569/1569, 1569/393 x10, 393/1569, 393/393",
    "maskfeat_l_16x4_pretrain": "25089/393 x2, 6273/1569, 6273/393 x5, 1569/1569, 1569/393 x39",
    "maskfeat_l_16x4_finetune": "25089/393 x2, 6273/1569, 6273/393 x5, 1569/1569, 1569/393 x35, 393/1569, 393/393 x3",
    "mvit_v1_b_16": "3137/197, 785/785, 785/197, 197/785, 197/197 x10, 50/197, 50/50",
    "mvit_v2_t": "3136/196, 784/784, 784/196, 196/784, 196/196 x4, 49/196, 49/49",
    "mvit_v2_s": "3136/196, 784/784, 784/196, 196/784, 196/196 x10, 49/196, 49/49",
    "mvit_v2_b": "3136/196 x2, 784/784, 784/196 x2, 196/784, 196/196 x15, 49/196, 49/49 x2",
    "mvit_v2_l": "3136/196 x2, 784/784, 784/196 x5, 196/784, 196/196 x35, 49/196, 49/49 x3",
    "mvit_v2_s_cls": "3137/197, 785/785, 785/197, 197/785, 197/197 x10, 50/197, 50/50",
    "mvit_v2_b_cls": "3137/197 x2, 785/785, 785/197 x2, 197/785, 197/197 x15, 50/197, 50/50 x2",
    "mvit_v2_l_cls": "3137/197 x2, 785/785, 785/197 x5, 197/785, 197/197 x35, 50/197, 50/50 x3",
    "mvit_v2_h_cls": "3137/197 x4, 785/785, 785/197 x7, 197/785, 197/197 x59, 50/197, 50/50 x7",
}

# Channels in -> attention -> out and heads of every block.
CHANNELS = {
    "mvit_v1_b_16x4": "96-96-192/1, 192-192-192/2, 192-192-384/2, 384-384-384/4 x10, 384-384-768/4, 768-768-768/8 x2",
    "mvit_v2_s_16x4": "96-96-96/1, 96-192-192/2, 192-192-192/2, 192-384-384/4, 384-384-384/4 x10, 384-768-768/8, "
    "768-768-768/8",
    "mvit_v2_l_40x3": "144-144-144/2 x2, 144-288-288/4, 288-288-288/4 x5, 288-576-576/8, 576-576-576/8 x35, "
    "576-1152-1152/16, 1152-1152-1152/16 x3",
    "maskfeat_l_16x4_finetune": "144-144-144/2, 144-144-288/2, 288-288-288/4 x5, 288-288-576/4, 576-576-576/8 x35, "
    "576-576-1152/8, 1152-1152-1152/16 x4",
}

PARAMETERS = {  # with the number of classes they are published with
    "mvit_v1_b_16x4": 36_610_672,
    "mvit_v2_s_16x4": 34_537_744,
    "mvit_v2_t": 24_173_320,
    "mvit_v2_s": 34_870_216,
    "mvit_v2_b": 51_472_744,
    "mvit_v2_l": 217_992_952,
    "mvit_v2_b_cls": 51_472_840,
    "mvit_v2_l_cls": 213_635_512,
    "mvit_v2_h_cls": 666_879_912,
}


def run_lengths(items: list[str]) -> str:
    runs = [(item, len(list(run))) for item, run in groupby(items)]
    return ", ".join(f"{item} x{count}" if count > 1 else item for item, count in runs)


def test_every_published_model_has_an_expectation() -> None:
    assert models.list_models() == sorted(TOKENS)


@pytest.mark.parametrize("name", TOKENS)
def test_token_counts_of_every_block(name: str) -> None:
    assert run_lengths([f"{s.num_q}/{s.num_kv}" for s in models.layer_shapes(name)]) == TOKENS[name]


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_and_heads_of_every_block(name: str) -> None:
    blocks = [f"{s.dim}-{s.att_dim}-{s.dim_out}/{s.heads}" for s in models.layer_shapes(name)]
    assert run_lengths(blocks) == CHANNELS[name]


@pytest.mark.parametrize(
    ("name", "head_dim", "million_scores"),
    [
        ("mvit_v1_b_16x4", 96, 75.2),
        ("mvit_v2_b_32x3", 96, 413.6),
        ("mvit_v2_l_40x3", 72, 8608.3),
        ("maskfeat_s_16x4_pretrain", 96, 78.9),
        ("maskfeat_l_16x4_pretrain", 72, 359.9),
        ("maskfeat_l_16x4_finetune", 72, 337.7),
        ("mvit_v2_b", 96, 6.1),
        ("mvit_v2_h_cls", 64, None),
    ],
)
def test_head_dim_and_score_count(name: str, head_dim: int, million_scores: float | None) -> None:
    shapes = models.layer_shapes(name)
    assert {shape.head_dim for shape in shapes} == {head_dim}
    if million_scores is not None:
        assert round(sum(shape.scores for shape in shapes) / 1e6, 1) == million_scores


def test_kernels_follow_the_stride_where_none_is_fixed() -> None:
    shapes = models.layer_shapes("mvit_v1_b_32x3")
    kernels = [str(s.pool_kv.kernel) if s.pool_kv else "none" for s in shapes]
    assert run_lengths(kernels) == "(1, 9, 9) x2, (1, 5, 5) x3, (1, 3, 3) x16, none x3"
    assert [s.block for s in shapes if s.pool_q] == [2, 5, 21]


def test_large_model_stores_shorter_tables_than_its_grids_need() -> None:
    shapes = models.layer_shapes("mvit_v2_l_40x3")
    assert run_lengths([str(s.table_rows) for s in shapes]) == (
        "(39, 155, 155) x2, (39, 77, 77) x6, (39, 37, 37) x37, (39, 17, 17) x3"
    )
    needed = [2 * max(s.grid_q[1], s.grid_kv[1]) - 1 for s in shapes]
    assert [s.block for s, rows in zip(shapes, needed, strict=True) if s.table_rows[1] < rows] == list(range(8, 48))


@pytest.mark.parametrize("name", TOKENS)
def test_shapes_are_those_of_the_built_model(name: str) -> None:
    with torch.device("meta"):
        model = models.create(name)
    shapes = models.layer_shapes(name)
    assert len(shapes) == len(model.blocks)
    for shape, block in zip(shapes, model.blocks, strict=True):
        layer = block.attn.describe()
        assert (layer.heads, layer.has_cls, layer.residual) == (shape.heads, shape.has_cls, shape.residual)
        assert (layer.pool_q and layer.pool_q.pool, layer.pool_k and layer.pool_k.pool) == (shape.pool_q, shape.pool_kv)
        assert block.attn.proj.in_features == shape.att_dim
        tables = (None,) * 3 if layer.rel_pos is None else (layer.rel_pos.t, layer.rel_pos.h, layer.rel_pos.w)
        assert tuple(0 if table is None else len(table) for table in tables) == shape.table_rows


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name: str) -> None:
    with torch.device("meta"):
        model = models.create(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_overrides_reach_the_shapes_and_the_model() -> None:
    shapes = models.layer_shapes("mvit_v2_s_16x4", num_frames=32, crop_size=(112, 224))
    assert shapes[0].grid == (16, 28, 56)
    with torch.device("meta"):
        model = models.create("mvit_v2_s_16x4", num_classes=174, num_frames=32)
    assert model.head.projection.out_features == 174
    assert model.blocks[0].attn.rel_pos_t.shape == (31, 96)
    assert models.layer_shapes(model.config)[0].grid == (16, 56, 56)


def test_unknown_model_names_near_ones() -> None:
    for call in (models.create, models.layer_shapes):
        with pytest.raises(ValueError, match=r"no model 'mvit_v2_s_16x8'.* mvit_v2_s_16x4"):
            call("mvit_v2_s_16x8")


def test_unknown_option_names_near_ones() -> None:
    with pytest.raises(TypeError, match=r"no option 'num_class'.* num_classes"):
        models.create("mvit_v2_s", num_class=10)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"depth": 0}, "depth is 0, at least 1"),
        ({"depth": 10}, "dim_mul names block 14, 0 to 9"),
        ({"patch_kernel": (7, 7)}, "patch_kernel"),
        ({"crop_size": 3}, "crop_size 3 are smaller than patch_stride"),
        ({"block_setting": ()}, "block_setting is empty"),
        ({"mode": "median"}, "mode is 'median'"),
        ({"rel_pos_index": "timm"}, "rel_pos_index is 'timm'"),
    ],
)
def test_a_bad_option_is_named(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        models.create("mvit_v2_s_16x4", **overrides)
