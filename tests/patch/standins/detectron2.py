"""detectron2/modeling/backbone/mvit.py and vit.py: maps (B, H, W, C), windows after the pooling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from . import eager


class MultiScaleAttention(nn.Module):
    def __init__(
        self,
        dim,
        dim_out,
        num_heads,
        qkv_bias=True,
        norm_layer=nn.LayerNorm,
        pool_kernel=(3, 3),
        stride_q=1,
        stride_kv=1,
        residual_pooling=True,
        window_size=0,
        use_rel_pos=False,
        rel_pos_zero_init=True,
        input_size=None,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim_out // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim_out, bias=qkv_bias)
        self.proj = nn.Linear(dim_out, dim_out)
        channels, strides = dim_out // num_heads, ((stride_q,) * 2, (stride_kv,) * 2)
        eager.make_pools(self, "conv", pool_kernel, pool_kernel, *strides, channels, norm_layer, 2)
        self.window_size = window_size
        if window_size:
            self.q_win_size, self.kv_win_size = window_size // stride_q, window_size // stride_kv
        self.residual_pooling = residual_pooling
        self.use_rel_pos = use_rel_pos
        if use_rel_pos:
            eager.make_tables(self, input_size[0], stride_q, stride_kv, channels)

    def forward(self, x):
        grid = list(x.shape[1:3])
        qkv = eager.project(self, x.flatten(1, 2))
        (q, grid_q), (k, grid_k), (v, _) = eager.pool_qkv(self, qkv, grid, False)
        if not self.window_size:
            out = self.inside(q, k, v, grid_q, grid_k)
        else:
            # One window after the other; its keys beyond the map are zeros and are attended to.
            out = torch.zeros_like(q).unflatten(2, grid_q)
            wq, wk = self.q_win_size, self.kv_win_size
            maps = [t.unflatten(2, g) for t, g in ((q, grid_q), (k, grid_k), (v, grid_k))]
            for i in range(math.ceil(grid_q[0] / wq)):
                for j in range(math.ceil(grid_q[1] / wq)):
                    cut = [window(t, i, j, w).flatten(2, 3) for t, w in zip(maps, (wq, wk, wk), strict=True)]
                    y = self.inside(*cut, [wq, wq], [wk, wk]).unflatten(2, (wq, wq))
                    rows, columns = slice(i * wq, (i + 1) * wq), slice(j * wq, (j + 1) * wq)
                    room = out[:, :, rows, columns]
                    out[:, :, rows, columns] = y[:, :, : room.shape[2], : room.shape[3]]
            out = out.flatten(2, 3)
        if self.residual_pooling:
            out = out + q
        return self.proj(eager.merge(out).unflatten(1, grid_q))

    def inside(self, q, k, v, grid_q, grid_k):
        bias = None
        if self.use_rel_pos:
            bias = eager.rel_pos_bias(q, (self.rel_pos_h, self.rel_pos_w), grid_q, grid_k, False)
        return eager.attend(q, k, v, self.scale, bias)


def window(maps, i, j, size):
    """Window (i, j) of (B, H, h, w, D), filled up with zeros."""
    cut = maps[:, :, i * size : (i + 1) * size, j * size : (j + 1) * size]
    return F.pad(cut, (0, 0, 0, size - cut.shape[3], 0, size - cut.shape[2]))


class Attention(nn.Module):
    """ViTDet's, and segment_anything's."""

    def __init__(self, dim, num_heads=8, qkv_bias=True, use_rel_pos=False, rel_pos_zero_init=True, input_size=None):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.use_rel_pos = use_rel_pos
        if use_rel_pos:
            for name, size in zip("hw", input_size, strict=True):
                setattr(self, f"rel_pos_{name}", nn.Parameter(0.02 * torch.randn(2 * size - 1, dim // num_heads)))

    def forward(self, x):
        grid = list(x.shape[1:3])
        q, k, v = eager.project(self, x.flatten(1, 2))
        bias = None
        if self.use_rel_pos:
            bias = eager.rel_pos_bias(q, (self.rel_pos_h, self.rel_pos_w), grid, grid, False)
        out = eager.attend(q, k, v, self.scale, bias)
        return self.proj(eager.merge(out).unflatten(1, grid))
