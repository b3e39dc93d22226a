"""The ops: checked public functions, and the torch.library contract every compiled backend implements.

Importing this package defines `torch.ops.mvit_kernels.*` with fakes and autograd, whether or not a binary is there. The
public functions check their arguments, pick a backend and call it.
"""

from ..triton_kernels import ops as _triton_ops  # noqa: F401  registers the implementations
from .decomposed_rel_pos import decomposed_rel_pos
from .layer_norm import layer_norm
from .linear import linear
from .norm_mlp import norm_mlp
from .pool3d_norm import pool3d_norm
from .pooled_query_attention import pooled_query_attention
from .pooling_attention import pooling_attention
from .qkv_pool3d_norm import qkv_pool3d_norm

__all__ = [
    "decomposed_rel_pos",
    "layer_norm",
    "linear",
    "norm_mlp",
    "pool3d_norm",
    "pooled_query_attention",
    "pooling_attention",
    "qkv_pool3d_norm",
]
