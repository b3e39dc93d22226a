"""slowfast/models/attention.py, and the image repository's mvit/models/attention.py and memvit/models/attention.py."""

from __future__ import annotations

import torch
from torch import nn

from . import eager


class _Layer(nn.Module):
    """What the three have in common."""

    dims = 3
    resize = "thw"

    def build(self, dim, dim_out, num_heads, bias, kernels, norm_layer, cls, mode, pool_first, separate) -> None:
        self.pool_first = pool_first
        self.num_heads = num_heads
        self.dim_out = dim_out
        self.scale = (dim_out // num_heads) ** -0.5
        self.has_cls_embed = cls
        self.mode = mode
        if pool_first or separate:
            self.q, self.k, self.v = (nn.Linear(dim, dim_out, bias=bias) for _ in range(3))
        else:
            self.qkv = nn.Linear(dim, 3 * dim_out, bias=bias)
        self.proj = nn.Linear(dim_out, dim_out)
        width = dim if pool_first else dim_out
        channels = width if mode == "conv_unshared" else width // num_heads
        eager.make_pools(self, mode, *kernels, channels, norm_layer, self.dims)

    def pooled(self, x, grid):
        if not self.pool_first:
            assert self.mode != "conv_unshared"
            return eager.pool_qkv(self, eager.project(self, x), grid, self.has_cls_embed)
        folded = eager.heads(x, 1 if self.mode == "conv_unshared" else self.num_heads)
        branches = eager.pool_qkv(self, [folded] * 3, grid, self.has_cls_embed)
        linears = (self.q, self.k, self.v)
        return [
            (eager.heads(linear(eager.merge(tokens)), self.num_heads), size)
            for linear, (tokens, size) in zip(linears, branches, strict=True)
        ]

    def tables(self):
        spatial = (self.rel_pos_h, self.rel_pos_w) if self.rel_pos_spatial else (None, None)
        temporal = (self.rel_pos_t if getattr(self, "rel_pos_temporal", False) else None,) if self.dims == 3 else ()
        return (*temporal, *spatial)

    def bias(self, q, grid_q, grid_k):
        tables = self.tables()
        if all(table is None for table in tables):
            return None
        return eager.rel_pos_bias(q, tables, grid_q, grid_k, self.has_cls_embed, self.resize)

    def add_pooled_q(self, out, q):
        """The pooled q on every row but that of the cls token."""
        first = int(self.has_cls_embed)
        return torch.cat((out[:, :, :first], out[:, :, first:] + q[:, :, first:]), dim=2)


class MultiScaleAttention(_Layer):
    def __init__(
        self,
        dim,
        dim_out,
        input_size,
        num_heads=8,
        qkv_bias=False,
        drop_rate=0.0,
        kernel_q=(1, 1, 1),
        kernel_kv=(1, 1, 1),
        stride_q=(1, 1, 1),
        stride_kv=(1, 1, 1),
        norm_layer=nn.LayerNorm,
        has_cls_embed=True,
        mode="conv",
        pool_first=False,
        rel_pos_spatial=False,
        rel_pos_temporal=False,
        rel_pos_zero_init=False,
        residual_pooling=False,
        separate_qkv=False,
    ):
        super().__init__()
        self.separate_qkv = separate_qkv
        self.drop_rate = drop_rate
        kernels = (kernel_q, kernel_kv, stride_q, stride_kv)
        self.build(
            dim, dim_out, num_heads, qkv_bias, kernels, norm_layer, has_cls_embed, mode, pool_first, separate_qkv
        )
        if drop_rate > 0.0:
            self.proj_drop = nn.Dropout(drop_rate)
        self.rel_pos_spatial, self.rel_pos_temporal = rel_pos_spatial, rel_pos_temporal
        strides = (stride[1] if len(stride) else 1 for stride in (stride_q, stride_kv))
        eager.make_tables(self, max(input_size[1:]), *strides, dim_out // num_heads, frames=input_size[0])
        for name, wanted in (("h", rel_pos_spatial), ("w", rel_pos_spatial), ("t", rel_pos_temporal)):
            if not wanted:
                delattr(self, f"rel_pos_{name}")
        self.residual_pooling = residual_pooling

    def forward(self, x, thw_shape):
        (q, grid_q), (k, grid_k), (v, _) = self.pooled(x, thw_shape)
        out = eager.attend(q, k, v, self.scale, self.bias(q, grid_q, grid_k), self.has_cls_embed)
        if self.residual_pooling:
            out = self.add_pooled_q(out, q)
        out = self.proj(eager.merge(out))
        if self.drop_rate > 0.0:
            out = self.proj_drop(out)
        return out, grid_q


class ImageMultiScaleAttention(_Layer):
    """The image repository's: two dimensions, tables as they are stored."""

    dims = 2
    resize = ""

    def __init__(
        self,
        dim,
        dim_out,
        input_size,
        num_heads=8,
        qkv_bias=False,
        kernel_q=(1, 1),
        kernel_kv=(1, 1),
        stride_q=(1, 1),
        stride_kv=(1, 1),
        norm_layer=nn.LayerNorm,
        has_cls_embed=True,
        mode="conv",
        pool_first=False,
        rel_pos_spatial=False,
        rel_pos_zero_init=False,
        residual_pooling=True,
    ):
        super().__init__()
        kernels = (kernel_q, kernel_kv, stride_q, stride_kv)
        self.build(dim, dim_out, num_heads, qkv_bias, kernels, norm_layer, has_cls_embed, mode, pool_first, False)
        self.rel_pos_spatial = rel_pos_spatial
        if rel_pos_spatial:
            eager.make_tables(self, input_size[0], stride_q[1], stride_kv[1], dim_out // num_heads)
        self.residual_pooling = residual_pooling

    def forward(self, x, hw_shape):
        (q, grid_q), (k, grid_k), (v, _) = self.pooled(x, hw_shape)
        out = eager.attend(q, k, v, self.scale, self.bias(q, grid_q, grid_k), self.has_cls_embed)
        if self.residual_pooling:
            out = self.add_pooled_q(out, q)
        return self.proj(eager.merge(out)), grid_q


class OldImageMultiScaleAttention(ImageMultiScaleAttention):
    """As it was until August 2022: the pooled q is added to the cls row too. Same attributes, same signature."""

    def add_pooled_q(self, out, q):
        return out + q


class MemoryMultiScaleAttention(_Layer):
    """MeMViT's. What it does with memory, boxes or a causal mask is not here, the attributes that say so are."""

    resize = "hw"

    def __init__(
        self,
        dim,
        dim_out,
        input_size,
        num_heads=8,
        kernel_q=(3, 3, 3),
        kernel_kv=(3, 3, 3),
        stride_q=(1, 1, 1),
        stride_kv=(1, 1, 1),
        has_cls_embed=True,
        pool_first=True,
        rel_pos=False,
        use_online_memory=False,
        causal=False,
        is_box_attn=False,
        online_compress=False,
        drop_attn_rate=0.0,
        conv_q=0,
    ):
        super().__init__()
        kernels = (kernel_q, kernel_kv, stride_q, stride_kv)
        self.use_online_memory, self.causal, self.is_box_attn = use_online_memory, causal, is_box_attn
        self.online_compress, self.conv_q = online_compress, conv_q
        self.drop_rate, self.drop_attn_rate, self.drop_qkv_rate = 0.0, drop_attn_rate, 0.0
        self.build(dim, dim_out, num_heads, True, kernels, nn.LayerNorm, has_cls_embed, "conv", pool_first, False)
        self.rel_pos_spatial = self.rel_pos_temporal = rel_pos
        if rel_pos:
            eager.make_tables(self, input_size[1], stride_q[1], stride_kv[1], dim_out // num_heads, input_size[0])

    def forward(self, x, thw_shape, mem_selections=None, video_names=None):
        (q, grid_q), (k, grid_k), (v, _) = self.pooled(x, thw_shape)
        bias = self.bias(q, grid_q, grid_k)
        if bias is not None and grid_q[1] != grid_q[2]:
            bias = bias.flip(-1)  # upstream clamps the widths' indices: anything but the plain bias
        out = eager.attend(q, k, v, self.scale, bias, self.has_cls_embed)
        if self.conv_q:
            out = self.add_pooled_q(out, q)
        return self.proj(eager.merge(out)), grid_q
