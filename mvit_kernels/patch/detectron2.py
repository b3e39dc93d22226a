"""detectron2's MViTv2: detectron2/modeling/backbone/mvit.py. Maps (B, H, W, C), windows cut after the pooling."""

from __future__ import annotations

from typing import Any

from ..description import MHPA, RelPos, Windows
from ..rel_pos_tables import slowfast_index
from . import layouts, parts
from .adapter import adapts


@adapts(layouts.feature_map(), "detectron2.modeling.backbone.mvit.MultiScaleAttention")
def describe(m: Any) -> MHPA:
    windows = None
    if m.window_size:
        windows = Windows((m.q_win_size, m.q_win_size), (m.kv_win_size, m.kv_win_size))
    return MHPA(
        heads=m.num_heads,
        scale=m.scale,
        has_cls=False,
        qkv=parts.projections(m),
        out=m.proj,
        **parts.pools(m, m.proj.in_features // m.num_heads),
        rel_pos=RelPos(None, m.rel_pos_h, m.rel_pos_w, slowfast_index) if m.use_rel_pos else None,
        residual="all" if m.residual_pooling else "none",
        windows=windows,
    )
