"""A model as data, in SlowFast's vocabulary (the MVIT section of its configs), and the blocks it implies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from torch import nn

from ..problem import Grid

Sizes = tuple[int, ...]
"""Kernel or stride per axis; empty for no pooling."""

LAYER_NORM = partial(nn.LayerNorm, eps=1e-6)


@dataclass(frozen=True)
class BlockConfig:
    """What sets one block apart from the others of its model."""

    dim: int
    dim_out: int
    num_heads: int
    kernel_q: Sizes
    kernel_kv: Sizes
    stride_q: Sizes
    stride_kv: Sizes


@dataclass(frozen=True)
class MViTConfig:
    """An MViT classifier. Names are SlowFast's, in lower case; the defaults are its MViTv1-B without the schedule.

    Attributes:
        num_frames, crop_size: the clip that position tables are sized for; crop_size is one number or (H, W).
        patch_kernel, patch_stride, patch_padding: of the patch embedding; two numbers each for SlowFast's PATCH_2D.
        depth: number of blocks.
        dim_mul, head_mul: (block, factor) rows: channels and heads grow by that factor at that block.
        pool_q_stride: (block, t, h, w) rows; the other blocks don't pool q.
        pool_kv_stride_adaptive: kv stride of block 0; each strided q divides it. None: k and v are not pooled.
        pool_kvq_kernel: kernel of every pooling; None: stride + 1 where the stride is above 1, else 1.
        dim_mul_in_att: a block changes channels in its attention, so at the block named in dim_mul; else in the MLP of
            the block before.
        sep_pos_embed: absolute position as a spatial, a temporal and a class table instead of one table.
        use_mean_pooling: classify the mean of the grid tokens, normalised after the mean; else the cls token, or
            without one the mean of the normalised tokens.
        head_dropout_rate: dropout before the classifier (SlowFast's MODEL.DROPOUT_RATE).
        rel_pos_index, residual: see :class:`mvit_kernels.modules.MultiHeadPoolingAttention`.
        norm_layer: makes every LayerNorm from its channel count.
        block_setting: the blocks themselves, for a model that embed_dim, num_heads, depth, dim_mul, head_mul and the
            pool fields don't describe; these are then not looked at.
    """

    num_frames: int = 16
    crop_size: int | tuple[int, int] = 224
    input_channels: int = 3
    num_classes: int = 400
    patch_kernel: Sizes = (3, 7, 7)
    patch_stride: Sizes = (2, 4, 4)
    patch_padding: Sizes = (1, 3, 3)
    embed_dim: int = 96
    num_heads: int = 1
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    depth: int = 16
    dim_mul: tuple[tuple[int, float], ...] = ()
    head_mul: tuple[tuple[int, float], ...] = ()
    pool_q_stride: tuple[tuple[int, int, int, int], ...] = ()
    pool_kv_stride_adaptive: Grid | None = None
    pool_kvq_kernel: Grid | None = None
    mode: str = "conv"
    pool_first: bool = False
    separate_qkv: bool = False
    dim_mul_in_att: bool = False
    cls_embed_on: bool = True
    use_abs_pos: bool = True
    sep_pos_embed: bool = False
    rel_pos_spatial: bool = False
    rel_pos_temporal: bool = False
    rel_pos_zero_init: bool = False
    rel_pos_index: str = "slowfast"
    residual_pooling: bool = False
    residual: str = "no_cls"
    use_mean_pooling: bool = False
    dropout_rate: float = 0.0
    droppath_rate: float = 0.0
    head_dropout_rate: float = 0.0
    head_init_scale: float = 1.0
    norm_layer: Callable[[int], nn.Module] = LAYER_NORM
    block_setting: tuple[BlockConfig, ...] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.patch_kernel), len(self.patch_stride), len(self.patch_padding)}
        if lengths not in ({2}, {3}):
            raise ValueError(
                f"MViTConfig: patch_kernel {self.patch_kernel}, patch_stride {self.patch_stride}, "
                f"patch_padding {self.patch_padding}: two (h, w) or three (t, h, w) ints each are right"
            )
        if self.block_setting is None:
            if self.depth < 1:
                raise ValueError(f"MViTConfig: depth is {self.depth}, at least 1 is right")
            for name in ("dim_mul", "head_mul", "pool_q_stride"):
                late = [row for row in getattr(self, name) if not 0 <= row[0] < self.depth]
                if late:
                    raise ValueError(f"MViTConfig: {name} names block {late[0][0]}, 0 to {self.depth - 1} is right")
        elif not self.block_setting:
            raise ValueError("MViTConfig: block_setting is empty, at least one block is right")
        if min(self.patch_dims) < 1:
            raise ValueError(
                f"MViTConfig: num_frames {self.num_frames} and crop_size {self.crop_size} are smaller than "
                f"patch_stride {self.patch_stride}, at least one patch per axis is right"
            )

    @property
    def clip(self) -> Grid:
        """(T, H, W) of the input in frames and pixels."""
        height, width = (self.crop_size, self.crop_size) if isinstance(self.crop_size, int) else self.crop_size
        return self.num_frames, height, width

    @property
    def patch_2d(self) -> bool:
        """The patch embedding is a 2D convolution on every frame."""
        return len(self.patch_kernel) == 2

    @property
    def patch_dims(self) -> Grid:
        """Token grid that position tables are sized for: floor(size / stride), as in SlowFast and torchvision."""
        return _grid(n // s for n, s in zip(self.clip, self._per_axis(self.patch_stride, 1), strict=True))

    @property
    def grid(self) -> Grid:
        """Token grid that the patch embedding makes of the clip."""
        sizes = zip(
            self.clip,
            self._per_axis(self.patch_kernel, 1),
            self._per_axis(self.patch_stride, 1),
            self._per_axis(self.patch_padding, 0),
            strict=True,
        )
        return _grid((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)

    def blocks(self) -> tuple[BlockConfig, ...]:
        """The blocks, from `block_setting` or by SlowFast's rules (slowfast/models/video_model_builder.py)."""
        if self.block_setting is not None:
            return self.block_setting
        dim_mul, head_mul = dict(self.dim_mul), dict(self.head_mul)
        strides_q = {block: stride for block, *stride in self.pool_q_stride}
        stride_kv = self.pool_kv_stride_adaptive
        dim, heads, blocks = self.embed_dim, self.num_heads, []
        for i in range(self.depth):
            heads = round_width(heads, head_mul.get(i, 1.0))
            at = i if self.dim_mul_in_att else i + 1
            dim_out = round_width(dim, dim_mul.get(at, 1.0), divisor=round_width(heads, head_mul.get(at, 1.0)))
            stride_q = tuple(strides_q.get(i, ()))
            if stride_kv is not None and stride_q:
                stride_kv = _grid(max(kv // q, 1) for kv, q in zip(stride_kv, stride_q, strict=True))
            blocks.append(
                BlockConfig(
                    dim,
                    dim_out,
                    heads,
                    kernel_q=self._kernel(stride_q),
                    kernel_kv=self._kernel(stride_kv or ()),
                    stride_q=stride_q,
                    stride_kv=stride_kv or (),
                )
            )
            dim = dim_out
        return tuple(blocks)

    def input_sizes(self) -> tuple[Grid, ...]:
        """Per block the grid its relative-position tables are sized for: floor division from block to block."""
        size, sizes = self.patch_dims, []
        for block in self.blocks():
            sizes.append(size)
            if block.stride_q:
                size = _grid(max(n // s, 1) for n, s in zip(size, block.stride_q, strict=True))
        return tuple(sizes)

    def _kernel(self, stride: Sizes) -> Sizes:
        if not stride:
            return ()
        return self.pool_kvq_kernel or tuple(s + 1 if s > 1 else s for s in stride)

    def _per_axis(self, sizes: Sizes, frames: int) -> Sizes:
        return (frames, *sizes) if self.patch_2d else sizes


def round_width(width: int, factor: float, divisor: int = 1) -> int:
    """width * factor to the nearest multiple of `divisor` that is not below 0.9 of it (slowfast/models/utils.py)."""
    scaled = width * factor
    rounded = max(1, int(scaled + divisor / 2) // divisor * divisor)
    return int(rounded + divisor if rounded < 0.9 * scaled else rounded)


def _grid(sizes: Iterable[int]) -> Grid:
    t, h, w = sizes
    return t, h, w
