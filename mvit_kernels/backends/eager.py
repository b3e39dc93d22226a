"""The reference as a backend: any device, any floating dtype, no kernels."""

from __future__ import annotations

from collections.abc import Iterator

from .. import reference
from ..problem import Problem
from .base import Backend


class EagerBackend(Backend):
    name = "eager"

    def reasons_not_supported(self, problem: Problem) -> Iterator[str]:
        yield from ()

    pool3d_norm = staticmethod(reference.pool3d_norm)
    qkv_pool3d_norm = staticmethod(reference.qkv_pool3d_norm)
    decomposed_rel_pos = staticmethod(reference.decomposed_rel_pos)
    pooling_attention = staticmethod(reference.pooling_attention)
    pooled_query_attention = staticmethod(reference.pooled_query_attention)
    linear = staticmethod(reference.linear)
    layer_norm = staticmethod(reference.layer_norm)
    norm_mlp = staticmethod(reference.norm_mlp)
