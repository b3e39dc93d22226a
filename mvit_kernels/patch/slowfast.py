"""SlowFast: MViT v1 and v2, the masked pre-training models and the reversible MViT, which hold the same layer.

Source: slowfast/models/attention.py. The layers of MAE's and MaskFeat's plain ViT have no pooling; they are given a
grid that does not match their tokens, and do not look at it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..description import MHPA, RelPos
from ..rel_pos_tables import slowfast_index
from . import layouts, parts
from .adapter import NotCovered, adapts


@adapts(layouts.tokens_and_grid("thw_shape", 3, list), "slowfast.models.attention.MultiScaleAttention")
def describe(m: Any) -> MHPA:
    return describe_layer(
        m,
        table_t=m.rel_pos_t if m.rel_pos_temporal else None,
        residual="no_cls" if m.residual_pooling else "none",
        resized="thw",
    )


def describe_layer(m: Any, *, table_t: Tensor | None, residual: str, resized: str) -> MHPA:
    """What SlowFast's layer, the image repository's and MeMViT's have in common."""
    if m.mode == "conv_unshared" and not m.pool_first:
        raise NotCovered("mode conv_unshared without pool_first fails in the layer's own forward")
    table_h, table_w = (m.rel_pos_h, m.rel_pos_w) if m.rel_pos_spatial else (None, None)
    qkv = parts.projections(m)
    pool_heads = 1 if m.mode == "conv_unshared" else m.num_heads
    drop = (m.proj_drop,) if getattr(m, "drop_rate", 0.0) > 0.0 else ()
    return MHPA(
        heads=m.num_heads,
        scale=m.scale,
        has_cls=m.has_cls_embed,
        qkv=qkv,
        out=parts.in_turn(m.proj, *drop),
        **parts.pools(m, m.q.in_features // pool_heads if m.pool_first else m.dim_out // m.num_heads),
        rel_pos=None
        if table_t is None and table_h is None
        else RelPos(table_t, table_h, table_w, slowfast_index, resized),
        residual=residual,
        pool_first=m.pool_first,
        pool_heads=pool_heads,
    )
