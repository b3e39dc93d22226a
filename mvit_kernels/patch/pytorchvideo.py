"""PyTorchVideo: pytorchvideo/layers/attention.py, the released 0.1 and the versions since.

The 0.1 layer has neither residual pooling nor a fused projection. What the pooling kernels do not cover (dense
convolutions, BatchNorm and GELU before the pooling) the library pools itself, in front of the fused attention.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..description import MHPA, HostPool, PoolNorm, Separate
from ..problem import Grid
from . import layouts, parts
from .adapter import NotCovered, adapts


@adapts(layouts.tokens_and_grid("thw_shape", 3, list), "pytorchvideo.layers.attention.MultiScaleAttention")
def describe(m: Any) -> MHPA:
    qkv = parts.projections(m)
    q = qkv.q if isinstance(qkv, Separate) else qkv.linear
    channels = (q.in_features if m.pool_first else m.proj.in_features) // m.num_heads
    drop = (m.proj_drop,) if m.dropout_rate > 0.0 else ()
    return MHPA(
        heads=m.num_heads,
        scale=m.scale,
        has_cls=m.has_cls_embed,
        qkv=qkv,
        out=parts.in_turn(m.proj, *drop),
        pool_q=_branch(m, "q", channels),
        pool_k=_branch(m, "k", channels),
        pool_v=_branch(m, "v", channels),
        residual="all" if getattr(m, "residual_pool", False) else "none",
        pool_first=m.pool_first,
        pool_heads=m.num_heads,
    )


def _branch(m: Any, x: str, channels: int) -> PoolNorm | HostPool | None:
    holder = getattr(m, f"_attention_pool_{x}", None)
    if holder is None:  # 0.1
        pool, norm = getattr(m, f"pool_{x}"), getattr(m, f"norm_{x}", None)
    else:
        # These run, whatever `pool_q` and `norm_q` are: fuse_bn replaces one and not the other.
        pool, norm = holder.pool if holder.has_pool else None, holder.norm if holder.has_norm else None
    if pool is None:
        return None
    try:
        return parts.pool(f"pool_{x}", pool, norm, channels)
    except NotCovered:
        return HostPool(_Call(m.has_cls_embed, holder, pool, norm))


class _Call:
    """The library's own pooling of one branch."""

    def __init__(self, has_cls: bool, holder: Any, pool: Any, norm: Any) -> None:
        self.has_cls, self.holder, self.pool, self.norm = has_cls, holder, pool, norm

    def __call__(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        if self.holder is not None:
            y, (t, h, w) = self.holder(x, list(grid))
        else:
            from pytorchvideo.layers.attention import _attention_pool

            y, (t, h, w) = _attention_pool(x, self.pool, list(grid), has_cls_embed=self.has_cls, norm=self.norm)
        return y, (int(t), int(h), int(w))
