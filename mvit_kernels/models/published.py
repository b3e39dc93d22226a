"""The published MViT classifiers by name.

Sources: the yaml files of SlowFast (configs/Kinetics, ImageNet, masked_ssl), PyTorchVideo's hub and timm's mvitv2.py.
SlowFast trains several of them on other data too (Something-Something v2, Kinetics-600): same blocks, `num_classes=174`
or 600. torchvision's mvit_v1_b and mvit_v2_s are mvit_v1_b_16x4 and mvit_v2_s_16x4 with `rel_pos_index="torchvision"`
(:func:`mvit_kernels.models.from_torchvision` makes one with the weights). timm's models with a cls token add the
residual to its row: `residual="all"`.

The MaskFeat models are classifiers on MaskFeat's blocks; its masking and prediction heads are not here. Nor are models
whose blocks differ from MViT's: the reversible Rev-MViT, MeMViT with its memory, and detectron2's windowed MViTv2.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .config import MViTConfig


def stages(depth: int, *starts: int, pool_q: str, strided: int | None = None) -> dict[str, Any]:
    """The schedule all share: channels and heads double and q is strided at the first block of stages 2, 3 and 4.

    Args:
        pool_q: "strided": q is pooled where it is strided (MViTv1), or "every block" (MViTv2).
        strided: how many of the stages stride q, if not all.
    """
    stride = dict.fromkeys(range(depth) if pool_q == "every block" else (), (1, 1, 1))
    stride |= dict.fromkeys(starts[:strided], (1, 2, 2))
    doubles = tuple((start, 2.0) for start in starts)
    return {
        "depth": depth,
        "dim_mul": doubles,
        "head_mul": doubles,
        "pool_q_stride": tuple((block, *stride[block]) for block in sorted(stride)),
    }


V1_B = MViTConfig(
    **stages(16, 1, 3, 14, pool_q="strided"),
    pool_kvq_kernel=(3, 3, 3),
    pool_kv_stride_adaptive=(1, 8, 8),
    sep_pos_embed=True,
    droppath_rate=0.2,
    head_dropout_rate=0.5,
)

V2_S = MViTConfig(
    **stages(16, 1, 3, 14, pool_q="every block"),
    pool_kvq_kernel=(3, 3, 3),
    pool_kv_stride_adaptive=(1, 8, 8),
    dim_mul_in_att=True,
    use_abs_pos=False,
    rel_pos_spatial=True,
    rel_pos_temporal=True,
    residual_pooling=True,
    droppath_rate=0.2,
    head_dropout_rate=0.5,
)

MASKFEAT_S = replace(V2_S, dim_mul_in_att=False, droppath_rate=0.0, head_dropout_rate=0.0)
MASKFEAT_L = replace(MASKFEAT_S, embed_dim=144, num_heads=2)
FINE_TUNE: dict[str, Any] = {"use_mean_pooling": True, "head_init_scale": 0.001}

IMAGE: dict[str, Any] = {
    "num_frames": 1,
    "num_classes": 1000,
    "patch_kernel": (7, 7),
    "patch_stride": (4, 4),
    "patch_padding": (3, 3),
    "pool_kvq_kernel": (1, 3, 3),
    "pool_kv_stride_adaptive": (1, 4, 4),
    "droppath_rate": 0.1,
    "head_dropout_rate": 0.0,
}

V2_S_IMAGE = replace(V2_S, **IMAGE, cls_embed_on=False, rel_pos_temporal=False)
V2_B_IMAGE = replace(V2_S_IMAGE, **stages(24, 2, 5, 21, pool_q="every block"), droppath_rate=0.3)
V2_L_IMAGE = replace(
    V2_S_IMAGE, **stages(48, 2, 8, 44, pool_q="every block"), embed_dim=144, num_heads=2, droppath_rate=0.5
)
V2_H_IMAGE = replace(V2_S_IMAGE, **stages(80, 4, 12, 72, pool_q="every block"), embed_dim=192, num_heads=3)
WITH_CLS: dict[str, Any] = {"cls_embed_on": True, "droppath_rate": 0.0}

PUBLISHED: dict[str, MViTConfig] = {
    # Video, Kinetics-400: frames x sampling rate.
    "mvit_v1_b_16x4": V1_B,
    "mvit_v1_b_32x3": replace(
        V1_B, **stages(24, 2, 5, 21, pool_q="strided"), num_frames=32, pool_kvq_kernel=None, droppath_rate=0.3
    ),
    "pytorchvideo_mvit_base_32x3": replace(V1_B, num_frames=32, separate_qkv=True, droppath_rate=0.0),
    "mvit_v2_s_16x4": V2_S,
    "mvit_v2_b_32x3": replace(V2_S, **stages(24, 2, 5, 21, pool_q="every block"), num_frames=32, droppath_rate=0.3),
    "mvit_v2_l_40x3": replace(
        V2_S,
        **stages(48, 2, 8, 44, pool_q="every block"),
        num_frames=40,
        crop_size=312,
        embed_dim=144,
        num_heads=2,
        droppath_rate=0.75,
    ),
    # MaskFeat (arXiv 2112.09133); pre-training keeps the 14x14 grid in the last stage.
    "maskfeat_s_16x4_pretrain": replace(MASKFEAT_S, **stages(16, 1, 3, 14, pool_q="every block", strided=2)),
    "maskfeat_s_16x4_finetune": replace(MASKFEAT_S, **FINE_TUNE, droppath_rate=0.1),
    "maskfeat_l_16x4_pretrain": replace(MASKFEAT_L, **stages(48, 2, 8, 44, pool_q="every block", strided=2)),
    "maskfeat_l_16x4_finetune": replace(
        MASKFEAT_L, **stages(48, 2, 8, 44, pool_q="every block"), **FINE_TUNE, droppath_rate=0.2
    ),
    # Images, ImageNet-1k.
    "mvit_v1_b_16": replace(V1_B, **IMAGE, sep_pos_embed=False),
    "mvit_v2_t": replace(V2_S_IMAGE, **stages(10, 1, 3, 8, pool_q="every block")),
    "mvit_v2_s": V2_S_IMAGE,
    "mvit_v2_b": V2_B_IMAGE,
    "mvit_v2_l": replace(V2_L_IMAGE, dim_mul_in_att=False),
    # Images with a cls token, ImageNet-21k; sizes and the zero drop path are timm's.
    "mvit_v2_s_cls": replace(V2_S_IMAGE, **WITH_CLS),
    "mvit_v2_b_cls": replace(V2_B_IMAGE, **WITH_CLS),
    "mvit_v2_l_cls": replace(V2_L_IMAGE, **WITH_CLS),
    "mvit_v2_h_cls": replace(V2_H_IMAGE, **WITH_CLS),
}
