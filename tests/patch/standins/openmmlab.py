"""mmaction/models/backbones/mvit.py and mmpretrain/models/backbones/mvit.py."""

from __future__ import annotations

import torch
from torch import nn

from . import eager


class MultiScaleAttention(nn.Module):
    """mmaction2's, for video."""

    def __init__(
        self,
        in_dims,
        out_dims,
        num_heads,
        qkv_bias=True,
        pool_kernel=(3, 3, 3),
        stride_q=(1, 1, 1),
        stride_kv=(1, 1, 1),
        rel_pos_embed=True,
        residual_pooling=True,
        input_size=None,
        rel_pos_zero_init=False,
        with_cls_token=True,
    ):
        super().__init__()
        self.num_heads, self.with_cls_token = num_heads, with_cls_token
        self.in_dims, self.out_dims = in_dims, out_dims
        self.scale = (out_dims // num_heads) ** -0.5
        self.qkv = nn.Linear(in_dims, 3 * out_dims, bias=qkv_bias)
        self.proj = nn.Linear(out_dims, out_dims)
        channels = out_dims // num_heads
        eager.make_pools(self, "conv", pool_kernel, pool_kernel, stride_q, stride_kv, channels, nn.LayerNorm, 3)
        self.residual_pooling, self.rel_pos_embed = residual_pooling, rel_pos_embed
        if rel_pos_embed:
            eager.make_tables(self, input_size[1], stride_q[1], stride_kv[1], channels, input_size[0])

    def forward(self, x, in_size):
        cls = self.with_cls_token
        (q, grid_q), (k, grid_k), (v, _) = eager.pool_qkv(self, eager.project(self, x), in_size, cls)
        bias = None
        if self.rel_pos_embed:
            tables = (self.rel_pos_t, self.rel_pos_h, self.rel_pos_w)
            bias = eager.rel_pos_bias(q, tables, grid_q, grid_k, cls)
        out = eager.attend(q, k, v, self.scale, bias, cls)
        if self.residual_pooling:
            first = int(cls)
            out = torch.cat((out[:, :, :first], out[:, :, first:] + q[:, :, first:]), dim=2)
        return self.proj(eager.merge(out)), torch.Size(grid_q)


class ImageMultiScaleAttention(nn.Module):
    """mmpretrain's, for images."""

    def __init__(
        self,
        in_dims,
        out_dims,
        num_heads,
        qkv_bias=True,
        pool_kernel=(3, 3),
        stride_q=1,
        stride_kv=1,
        rel_pos_spatial=False,
        residual_pooling=True,
        input_size=None,
        rel_pos_zero_init=False,
    ):
        super().__init__()
        self.num_heads, self.in_dims, self.out_dims = num_heads, in_dims, out_dims
        self.scale = (out_dims // num_heads) ** -0.5
        self.qkv = nn.Linear(in_dims, 3 * out_dims, bias=qkv_bias)
        self.proj = nn.Linear(out_dims, out_dims)
        channels, strides = out_dims // num_heads, ((stride_q,) * 2, (stride_kv,) * 2)
        eager.make_pools(self, "conv", pool_kernel, pool_kernel, *strides, channels, nn.LayerNorm, 2)
        self.residual_pooling, self.rel_pos_spatial = residual_pooling, rel_pos_spatial
        if rel_pos_spatial:
            eager.make_tables(self, input_size[0], stride_q, stride_kv, channels)

    def forward(self, x, in_size):
        (q, grid_q), (k, grid_k), (v, _) = eager.pool_qkv(self, eager.project(self, x), in_size, False)
        bias = None
        if self.rel_pos_spatial:
            bias = eager.rel_pos_bias(q, (self.rel_pos_h, self.rel_pos_w), grid_q, grid_k, False)
        out = eager.attend(q, k, v, self.scale, bias)
        if self.residual_pooling:
            out = out + q
        return self.proj(eager.merge(out)), torch.Size(grid_q)
