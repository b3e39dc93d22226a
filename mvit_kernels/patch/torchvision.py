"""torchvision.models.video.mvit: MViT v1 and v2 of any configuration its classes accept."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..description import MHPA, Block, Fused, PoolNorm, RelPos
from ..hooks import has_hooks, inactive_dropout
from ..problem import Pool
from ..rel_pos_tables import torchvision_index
from . import blocks, layouts, parts
from .adapter import NotCovered, adapts


@adapts(layouts.tokens_and_grid("thw", 3, tuple, always=True), "torchvision.models.video.mvit.MultiscaleAttention")
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
        out_linear=None if has_hooks(m.project) else parts.lone_linear(m.project),
    )


def _pool(name: str, module: Any, channels: int) -> PoolNorm | None:
    if module is None:
        return None
    from torchvision.models.video.mvit import Pool as HostPool

    parts.plain(name, module, HostPool)
    if module.norm_before_pool:
        raise NotCovered(f"{name} normalises before pooling, after is covered")
    norm = None
    if module.norm_act is not None:
        parts.plain(f"{name}.norm_act", module.norm_act, nn.Sequential)
        if len(module.norm_act) != 1:
            raise NotCovered(f"{name} has an activation, none is covered")
        norm = module.norm_act[0]
    return parts.depthwise_pool(f"{name}.pool", module.pool, norm, channels)


@adapts(blocks.LAYOUT, "torchvision.models.video.mvit.MultiscaleBlock", scope="block")
def describe_block(m: Any) -> Block:
    from torchvision.ops import StochasticDepth

    if type(m.stochastic_depth) is not StochasticDepth:
        raise NotCovered(f"stochastic_depth is {type(m.stochastic_depth).__name__}, StochasticDepth is covered")
    return Block(
        norm1=parts.layer_norm("norm1", m.norm1),
        attention=blocks.attention(m.attn),
        norm2=parts.layer_norm("norm2", m.norm2),
        mlp=_mlp(m.mlp),
        has_cls=True,
        pool_skip=None if m.pool_skip is None else _pool_skip(m.pool_skip),
        project=None if m.project is None else parts.linear("project", m.project),
        project_first=m.proj_after_attn,
        drop_path=blocks.drop_path(m.stochastic_depth, m.stochastic_depth.training and m.stochastic_depth.p > 0),
    )


def _mlp(module: Any) -> Any:
    from torchvision.ops import MLP

    if has_hooks(module):
        return module
    parts.plain("mlp", module, MLP)
    dropouts = [layer for layer in module if isinstance(layer, nn.Dropout)]
    rest = [layer for layer in module if not isinstance(layer, nn.Dropout)]
    if not all(inactive_dropout(layer) for layer in dropouts):
        return module
    if len(rest) != 3:
        raise NotCovered(f"mlp has {len(rest)} layers, Linear, GELU and Linear are covered")
    return parts.gelu_mlp("mlp", *rest)


def _pool_skip(module: Any) -> Pool:
    from torchvision.models.video.mvit import Pool as HostPool

    parts.plain("pool_skip", module, HostPool)
    if module.norm_act is not None:
        raise NotCovered("pool_skip has a norm or an activation, none is covered")
    return parts.max_pool("pool_skip.pool", module.pool)
