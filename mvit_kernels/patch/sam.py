"""Attention with decomposed relative position and no pooling: the image encoders of SAM and ViTDet.

timm/models/vision_transformer_sam.py, transformers' SamVision and SamHQVision attention, detectron2's and
segment_anything's `Attention`. Their blocks cut windows before the layer, which sees them as a batch of maps.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..description import MHPA, RelPos
from ..rel_pos_tables import IndexFormula, float32_index, slowfast_index
from . import layouts, parts
from .adapter import NotCovered, adapts

PLAIN = "neither pools nor has relative position, which PyTorch's fused attention serves"


@adapts(
    layouts.feature_map(),
    "detectron2.modeling.backbone.vit.Attention",
    "segment_anything.modeling.image_encoder.Attention",
)
def describe_vitdet(m: Any) -> MHPA:
    return _describe(m, m.num_heads, slowfast_index, m.proj)


@adapts(layouts.feature_map(), "timm.models.vision_transformer_sam.Attention")
def describe_timm(m: Any) -> MHPA:
    if not m.use_rel_pos:
        raise NotCovered(PLAIN if m.rope is None else "rotary position embedding is not covered")
    parts.plain("q_norm", m.q_norm, nn.Identity)
    parts.plain("k_norm", m.k_norm, nn.Identity)
    parts.no_dropout("attn_drop", m.attn_drop)
    return _describe(m, m.num_heads, float32_index, parts.in_turn(m.proj, m.proj_drop))


@adapts(
    layouts.feature_map("hidden_states", "output_attentions", second=True),
    "transformers.models.sam.modeling_sam.SamVisionSdpaAttention",
    "transformers.models.sam_hq.modeling_sam_hq.SamHQVisionSdpaAttention",
)
def describe_transformers(m: Any) -> MHPA:
    if not m.use_rel_pos:
        raise NotCovered(PLAIN)
    return _describe(m, m.num_attention_heads, slowfast_index, m.proj)


@adapts(
    layouts.feature_map("hidden_states", "output_attentions", second=True),
    "transformers.models.sam.modeling_sam.SamVisionAttention",
    "transformers.models.sam_hq.modeling_sam_hq.SamHQVisionAttention",
)
def describe_transformers_eager(m: Any) -> MHPA:
    raise NotCovered("returns attention weights; a model loaded with attn_implementation='sdpa' is covered")


def _describe(m: Any, heads: int, index: IndexFormula, out: Any) -> MHPA:
    return MHPA(
        heads=heads,
        scale=m.scale,
        has_cls=False,
        qkv=parts.projections(m),
        out=out,
        pool_q=None,
        pool_k=None,
        pool_v=None,
        rel_pos=RelPos(None, m.rel_pos_h, m.rel_pos_w, index) if m.use_rel_pos else None,
    )
