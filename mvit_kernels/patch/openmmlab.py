"""mmaction2 (video) and mmpretrain (images; once mmcls): models/backbones/mvit.py of each.

Every branch is always pooled and normalised.
"""

from __future__ import annotations

from typing import Any

import torch

from ..description import MHPA, RelPos
from ..rel_pos_tables import slowfast_index
from . import layouts, parts
from .adapter import adapts


@adapts(layouts.tokens_and_grid("in_size", 3, torch.Size), "mmaction.models.backbones.mvit.MultiScaleAttention")
def describe_video(m: Any) -> MHPA:
    return _describe(m, m.with_cls_token, (m.rel_pos_t, m.rel_pos_h, m.rel_pos_w) if m.rel_pos_embed else None)


@adapts(
    layouts.tokens_and_grid("in_size", 2, torch.Size),
    "mmpretrain.models.backbones.mvit.MultiScaleAttention",
    "mmcls.models.backbones.mvit.MultiScaleAttention",
)
def describe_image(m: Any) -> MHPA:
    return _describe(m, False, (None, m.rel_pos_h, m.rel_pos_w) if m.rel_pos_spatial else None)


def _describe(m: Any, has_cls: bool, tables: tuple[Any, Any, Any] | None) -> MHPA:
    return MHPA(
        heads=m.num_heads,
        scale=m.scale,
        has_cls=has_cls,
        qkv=parts.projections(m),
        out=m.proj,
        **parts.pools(m, m.out_dims // m.num_heads),
        rel_pos=None if tables is None else RelPos(*tables, slowfast_index),
        residual="no_cls" if m.residual_pooling else "none",
    )
