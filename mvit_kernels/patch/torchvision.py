"""torchvision.models.video.mvit: MViT v1 and v2 of any configuration its classes accept."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..description import MHPA, Fused, PoolNorm, RelPos
from ..rel_pos_tables import torchvision_index
from . import parts
from .adapter import NotCovered, adapts


@adapts("torchvision.models.video.mvit.MultiscaleAttention")
def describe(m: Any) -> MHPA:
    with_cls = "all" if m.residual_with_cls_embed else "no_cls"
    tables = (m.rel_pos_t, m.rel_pos_h, m.rel_pos_w)
    return MHPA(
        heads=m.num_heads,
        scale=m.scaler,
        has_cls=True,
        qkv=Fused(parts.linear("qkv", m.qkv)),
        out=m.project,
        pool_q=_pool("pool_q", m.pool_q, m.head_dim),
        pool_k=_pool("pool_k", m.pool_k, m.head_dim),
        pool_v=_pool("pool_v", m.pool_v, m.head_dim),
        # The host's forward adds the bias only where all three tables are there.
        rel_pos=None if any(table is None for table in tables) else RelPos(*tables, index=torchvision_index),
        residual=with_cls if m.residual_pool else "none",
    )


def _pool(name: str, module: Any, channels: int) -> PoolNorm | None:
    if module is None:
        return None
    from torchvision.models.video.mvit import Pool

    parts.plain(name, module, Pool)
    if module.norm_before_pool:
        raise NotCovered(f"{name} normalises before pooling, after is covered")
    norm = None
    if module.norm_act is not None:
        parts.plain(f"{name}.norm_act", module.norm_act, nn.Sequential)
        if len(module.norm_act) != 1:
            raise NotCovered(f"{name} has an activation, none is covered")
        norm = module.norm_act[0]
    return parts.depthwise_pool(f"{name}.pool", module.pool, norm, channels)
