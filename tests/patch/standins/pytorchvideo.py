"""pytorchvideo/layers/attention.py as it is since the released 0.1: pooling modules, residual, fused projection."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from . import eager


class _AttentionPool(nn.Module):
    def __init__(self, pool, has_cls_embed, norm):
        super().__init__()
        self.has_pool, self.has_norm = pool is not None, norm is not None
        self.pool = pool if self.has_pool else nn.Identity()
        self.norm = norm if self.has_norm else nn.Identity()
        self.has_cls_embed = has_cls_embed
        self.norm_before_pool = isinstance(norm, (nn.BatchNorm3d, nn.Identity))

    def forward(self, tensor, thw_shape):
        if not self.has_pool:
            return tensor, thw_shape
        if not self.norm_before_pool:
            norm = self.norm if self.has_norm else None
            return eager.pool(tensor, self.pool, norm, thw_shape, self.has_cls_embed)

        def normed(maps):
            return self.pool(F.gelu(self.norm(maps)))

        return eager.pool(tensor, normed, None, thw_shape, self.has_cls_embed)


class MultiScaleAttention(nn.Module):
    def __init__(
        self,
        dim,
        dim_out=None,
        num_heads=8,
        qkv_bias=False,
        dropout_rate=0.0,
        kernel_q=(1, 1, 1),
        kernel_kv=(1, 1, 1),
        stride_q=(1, 1, 1),
        stride_kv=(1, 1, 1),
        norm_layer=nn.LayerNorm,
        has_cls_embed=True,
        pool_mode="conv",
        pool_first=False,
        residual_pool=True,
        depthwise_conv=True,
        bias_on=True,
        separate_qkv=True,
    ):
        super().__init__()
        self.pool_first, self.dropout_rate, self.num_heads = pool_first, dropout_rate, num_heads
        self.dim_out = dim_out or dim
        self.scale = (self.dim_out // num_heads) ** -0.5
        self.has_cls_embed, self.residual_pool, self.separate_qkv = has_cls_embed, residual_pool, separate_qkv
        self.q = self.k = self.v = self.qkv = nn.Identity()
        if pool_first or separate_qkv:
            self.q, self.k, self.v = (nn.Linear(dim, self.dim_out, bias=qkv_bias) for _ in range(3))
        else:
            self.qkv = nn.Linear(dim, 3 * self.dim_out, bias=qkv_bias)
        self.proj = nn.Linear(self.dim_out, self.dim_out, bias=bias_on)
        self.proj_drop = nn.Dropout(dropout_rate) if dropout_rate > 0 else nn.Identity()
        channels = (dim if pool_first else self.dim_out) // num_heads
        kernels = (kernel_q, kernel_kv, stride_q, stride_kv)
        eager.make_pools(self, pool_mode, *kernels, channels, norm_layer, 3)
        for x in "qkv":
            pool = getattr(self, f"pool_{x}")
            if pool_mode == "conv" and pool is not None and not depthwise_conv:
                pool = nn.Conv3d(channels, channels, pool.kernel_size, pool.stride, pool.padding, bias=False)
                setattr(self, f"pool_{x}", pool)
            setattr(self, f"_attention_pool_{x}", _AttentionPool(pool, has_cls_embed, getattr(self, f"norm_{x}", None)))

    def forward(self, x, thw_shape):
        pools = (self._attention_pool_q, self._attention_pool_k, self._attention_pool_v)
        linears = (self.q, self.k, self.v)
        if self.pool_first:
            pooled = [pool(eager.heads(x, self.num_heads), thw_shape) for pool in pools]
            qkv = [linear(eager.merge(y)) for linear, (y, _) in zip(linears, pooled, strict=True)]
            q, k, v = (eager.heads(part, self.num_heads) for part in qkv)
            grid = pooled[0][1]
        else:
            parts = [linear(x) for linear in linears] if self.separate_qkv else self.qkv(x).chunk(3, -1)
            pooled = [
                pool(eager.heads(part, self.num_heads), thw_shape) for pool, part in zip(pools, parts, strict=True)
            ]
            (q, grid), (k, _), (v, _) = pooled
        out = eager.attend(q, k, v, self.scale)
        if self.residual_pool:
            out = out + q
        out = self.proj(eager.merge(out))
        return (self.proj_drop(out) if self.dropout_rate > 0 else out), grid
