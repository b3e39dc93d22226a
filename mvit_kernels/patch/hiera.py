"""Max-pooled queries: Hiera's mask-unit attention and the attention of SAM 2's image encoder.

timm/models/hiera.py and hieradet_sam2.py, transformers' Hiera and Sam2, facebookresearch/hiera and sam2. Where values
tie for the maximum, the gradient goes to the first of them; Hiera in timm shares it between them.
"""

from __future__ import annotations

from typing import Any

from ..description import MHPA, PoolNorm
from ..problem import Pool
from . import layouts, parts
from .adapter import NotCovered, adapts
from .sam import PLAIN


@adapts(
    layouts.mask_units("x", "q_stride"),
    "timm.models.hiera.MaskUnitAttention",
    "hiera.hiera.MaskUnitAttention",
)
def describe_hiera(m: Any) -> MHPA:
    if m.q_stride == 1:
        raise NotCovered(PLAIN)
    return _describe(m, m.heads, _unrolled(m.q_stride))


@adapts(
    layouts.mask_units("hidden_states", "query_stride", "output_attentions", second=True),
    "transformers.models.hiera.modeling_hiera.HieraMaskUnitAttention",
)
def describe_transformers_hiera(m: Any) -> MHPA:
    # Without pooling it is worth it too: this layer keeps its scores in memory.
    return _describe(m, m.num_heads, _unrolled(m.query_stride) if m.query_stride > 1 else None)


@adapts(
    layouts.feature_map(),
    "timm.models.hieradet_sam2.MultiScaleAttention",
    "sam2.modeling.backbones.hieradet.MultiScaleAttention",
)
def describe_sam2(m: Any) -> MHPA:
    if m.q_pool is None:
        raise NotCovered(PLAIN)
    return _describe(m, m.num_heads, parts.pool("q_pool", m.q_pool, None, m.proj.in_features // m.num_heads))


@adapts(
    layouts.feature_map("hidden_states", "**"),
    "transformers.models.sam2.modeling_sam2.Sam2MultiScaleAttention",
)
def describe_transformers_sam2(m: Any) -> MHPA:
    if not m.query_stride:
        raise NotCovered(PLAIN)
    stride = (1, *m.query_stride)
    return _describe(m, m.num_attention_heads, PoolNorm(Pool("max", stride, stride, (0, 0, 0))))


def _unrolled(q_stride: int) -> PoolNorm:
    stride = (q_stride, 1, 1)
    return PoolNorm(Pool("max", stride, stride, (0, 0, 0)))


def _describe(m: Any, heads: int, pool_q: PoolNorm | None) -> MHPA:
    return MHPA(
        heads=heads,
        scale=(m.proj.in_features // heads) ** -0.5,
        has_cls=False,
        qkv=parts.projections(m),
        out=parts.in_turn(m.proj),
        pool_q=pool_q,
        pool_k=None,
        pool_v=None,
    )
