"""MeMViT without its memory: facebookresearch/MeMViT, memvit/models/attention.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..description import MHPA
from . import layouts
from .adapter import Layout, NotCovered, Random, adapts
from .slowfast import describe_layer

_tokens = layouts.tokens_and_grid("thw_shape", 3, list)


def _run(m: Any, layer: MHPA, x: Tensor, thw_shape: Any, mem_selections: Any = None, video_names: Any = None) -> Any:
    """The two arguments on memory do not matter where there is none."""
    if layer.rel_pos is not None and layer.rel_pos.h is not None and int(thw_shape[1]) != int(thw_shape[2]):
        raise NotCovered("MeMViT clamps the relative position over w to that over h where the grid is not square")
    return _tokens.run(m, layer, x, thw_shape)


def _example(m: Any, layer: MHPA, random: Random) -> tuple[Tensor, list[int]]:
    t, h, _ = layouts.small_grid(layer)
    return random(1, layer.has_cls + t * h * h, layer.channels), [t, h, h]


@adapts(
    Layout(("x", "thw_shape", "mem_selections", "video_names"), _run, _example),
    "memvit.models.attention.MultiScaleAttention",
)
def describe(m: Any) -> MHPA:
    for uses, what in (
        (m.use_online_memory, "attends to its memory"),
        (m.online_compress, "compresses memory"),
        (m.causal, "is causal"),
        (m.is_box_attn, "attends between boxes"),
        (m.conv_q > 1, "convolves the residual q"),
        (m.drop_attn_rate > 0 or m.drop_qkv_rate > 0, "drops attention weights or q, k and v in training"),
    ):
        if uses:
            raise NotCovered(f"the layer {what}, which is not covered")
    return describe_layer(
        m,
        table_t=m.rel_pos_t if m.rel_pos_temporal else None,
        residual="no_cls" if m.conv_q == 1 else "none",
        # Spatial tables are interpolated, the temporal one is not.
        resized="hw",
    )
