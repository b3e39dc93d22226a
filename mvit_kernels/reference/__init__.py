"""The specification: every op and the whole layer in plain PyTorch, written like the formulas.

Works in any floating dtype and is the oracle in float64. Nothing here is optimised, and nothing here checks its input:
the checked functions of the same names are in :mod:`mvit_kernels.ops`.
"""

from .decomposed_rel_pos import decomposed_rel_pos
from .layer import multi_head_pooling_attention
from .layer_norm import layer_norm
from .linear import linear
from .norm_mlp import norm_mlp
from .pool3d_norm import pool3d_norm, qkv_pool3d_norm
from .pooled_query_attention import pooled_query_attention
from .pooling_attention import pooling_attention

__all__ = [
    "decomposed_rel_pos",
    "layer_norm",
    "linear",
    "multi_head_pooling_attention",
    "norm_mlp",
    "pool3d_norm",
    "pooled_query_attention",
    "pooling_attention",
    "qkv_pool3d_norm",
]
