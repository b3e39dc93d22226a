"""Checkpoints of the libraries that no package index has, against their classes where the source is importable."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from mvit_kernels import models
from mvit_kernels.models import MViTConfig, convert_state_dict, translate_state_dict

from .test_checkpoints import IMAGE, OF_SCALE, VIDEO, assert_same, randomised


def mvit_section(config: MViTConfig, axes: int) -> dict[str, object]:
    """The MVIT section of a SlowFast or mvit config, with `axes` axes per kernel and stride."""
    return {
        "EMBED_DIM": config.embed_dim,
        "NUM_HEADS": config.num_heads,
        "DEPTH": config.depth,
        "CLS_EMBED_ON": config.cls_embed_on,
        "USE_ABS_POS": config.use_abs_pos,
        "ZERO_DECAY_POS_CLS": False,
        "PATCH_KERNEL": [*config.patch_kernel],
        "PATCH_STRIDE": [*config.patch_stride],
        "PATCH_PADDING": [*config.patch_padding],
        "DROPPATH_RATE": 0.0,
        "MLP_RATIO": config.mlp_ratio,
        "QKV_BIAS": config.qkv_bias,
        "MODE": config.mode,
        "POOL_FIRST": False,
        "REL_POS_SPATIAL": config.rel_pos_spatial,
        "REL_POS_ZERO_INIT": False,
        "RESIDUAL_POOLING": config.residual_pooling,
        "DIM_MUL_IN_ATT": config.dim_mul_in_att,
        "DIM_MUL": [[*row] for row in config.dim_mul],
        "HEAD_MUL": [[*row] for row in config.head_mul],
        "POOL_Q_STRIDE": [[block, *stride[-axes:]] for block, *stride in config.pool_q_stride],
        "POOL_KV_STRIDE_ADAPTIVE": [*(config.pool_kv_stride_adaptive or ())[-axes:]],
        "POOL_KVQ_KERNEL": [*(config.pool_kvq_kernel or ())[-axes:]],
    }


def test_mvit_loads_and_computes_the_same() -> None:
    mvit = pytest.importorskip("mvit.models.mvit_model", exc_type=ImportError)
    node = pytest.importorskip("fvcore.common.config").CfgNode
    cfg = node(
        {
            "DATA": {"TRAIN_CROP_SIZE": 64, "TEST_CROP_SIZE": 64},
            "MODEL": {"NUM_CLASSES": 7, "DROPOUT_RATE": 0.0, "HEAD_ACT": "softmax", "ACT_CHECKPOINT": False},
            "MVIT": {**mvit_section(IMAGE, axes=2), "POOL_KV_STRIDE": []},
        }
    )
    theirs = randomised(mvit.MViT(cfg))
    ours = models.MViT(IMAGE).double().eval()
    ours.load_state_dict(convert_state_dict(theirs.state_dict(), from_="mvit", to="mvit_kernels"))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert (ours(x).softmax(-1) - theirs(x)).abs().max() <= OF_SCALE
    assert_same(convert_state_dict(ours.state_dict(), from_="mvit_kernels", to="mvit"), theirs.state_dict())


@pytest.mark.parametrize("norm_stem", [False, True])
def test_slowfast_loads_and_computes_the_same(norm_stem: bool) -> None:
    defaults = pytest.importorskip("slowfast.config.defaults", exc_type=ImportError)
    builder = pytest.importorskip("slowfast.models.video_model_builder", exc_type=ImportError)
    cfg = defaults.get_cfg()
    cfg.MODEL.NUM_CLASSES, cfg.MODEL.DROPOUT_RATE = 7, 0.0
    cfg.DATA.TRAIN_CROP_SIZE = cfg.DATA.TEST_CROP_SIZE = 64
    cfg.DATA.NUM_FRAMES, cfg.DATA.INPUT_CHANNEL_NUM = VIDEO.num_frames, [3]
    options = {"SEP_POS_EMBED": True, "REL_POS_TEMPORAL": True, "NORM_STEM": norm_stem, "DROPOUT_RATE": 0.0}
    for name, value in {**mvit_section(VIDEO, axes=3), **options}.items():
        setattr(cfg.MVIT, name, value)
    theirs = randomised(builder.MViT(cfg))
    converted = translate_state_dict(theirs.state_dict(), from_="slowfast", to="mvit_kernels")
    assert converted.homeless == (["norm_stem.bias", "norm_stem.weight"] if norm_stem else [])
    if norm_stem:
        return
    ours = models.MViT(VIDEO).double().eval()
    ours.load_state_dict(convert_state_dict(theirs.state_dict(), from_="slowfast", to="mvit_kernels"))
    x = torch.randn(2, 3, *VIDEO.clip, dtype=torch.float64)
    with torch.no_grad():
        assert (ours(x).softmax(-1) - theirs([x])).abs().max() <= OF_SCALE


def test_detectron2_loads_and_computes_the_same() -> None:
    mvit = pytest.importorskip("detectron2.modeling.backbone.mvit", exc_type=ImportError)
    theirs = randomised(
        mvit.MViT(
            img_size=64,
            embed_dim=16,
            depth=4,
            last_block_indexes=(0, 2, 3),
            adaptive_window_size=0,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            out_features=("scale4",),
        )
    )
    config = replace(IMAGE, cls_embed_on=False, use_abs_pos=False)
    blocks = [
        replace(block, stride_kv=(1, *other.attn.pool_k.stride))  # larger in the blocks before a stage
        for block, other in zip(config.blocks(), theirs.blocks, strict=True)
    ]
    ours = randomised(models.MViT(replace(config, block_setting=tuple(blocks))))
    backbone = {key: tensor for key, tensor in ours.state_dict().items() if not key.startswith("head.")}
    theirs.load_state_dict(convert_state_dict(backbone, from_="mvit_kernels", to="detectron2"))
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = ours.head(theirs(x)["scale4"].mean((2, 3)))
        assert (ours(x) - expected).abs().max() <= OF_SCALE * expected.abs().max()
    assert_same(convert_state_dict(theirs.state_dict(), from_="detectron2", to="mvit_kernels"), backbone)
