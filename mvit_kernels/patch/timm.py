"""timm's MViTv2: timm/models/mvitv2.py. The cls row is in the residual, tables are not interpolated."""

from __future__ import annotations

from typing import Any

from ..description import MHPA, RelPos
from ..rel_pos_tables import slowfast_index
from . import layouts, parts
from .adapter import NotCovered, adapts

LAYOUT = layouts.tokens_and_grid("feat_size", 2, list)


@adapts(LAYOUT, "timm.models.mvitv2.MultiScaleAttention")
def describe(m: Any) -> MHPA:
    if m.unshared:
        raise NotCovered("mode conv_unshared fails in the layer's own forward")
    spatial = m.rel_pos_type == "spatial"
    return MHPA(
        heads=m.num_heads,
        scale=m.scale,
        has_cls=m.has_cls_token,
        qkv=parts.projections(m),
        out=m.proj,
        **parts.pools(m, m.head_dim),
        rel_pos=RelPos(None, m.rel_pos_h, m.rel_pos_w, slowfast_index, resized="") if spatial else None,
        residual="all" if m.residual_pooling else "none",
    )


@adapts(LAYOUT, "timm.models.mvitv2.MultiScaleAttentionPoolFirst")
def describe_pool_first(m: Any) -> MHPA:
    raise NotCovered("timm's pool_first layer fails in its own forward: k is never transposed")
