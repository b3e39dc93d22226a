"""Shapes of every attention layer of a model, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..modules import arguments
from ..problem import Grid, Pool, tokens
from .config import MViTConfig
from .registry import model_config


@dataclass(frozen=True)
class LayerShape:
    """One attention layer.

    Attributes:
        dim, att_dim, dim_out: channels into the block, of the attention, and out of the block.
        grid, grid_q, grid_kv: token grids of the input, of pooled q, and of pooled k and v.
        pool_q, pool_kv: None where there is no pooling.
        table_rows: rows of the stored relative-position tables for t, h and w; 0 where there is none.
    """

    block: int
    dim: int
    att_dim: int
    dim_out: int
    heads: int
    has_cls: bool
    grid: Grid
    pool_q: Pool | None
    pool_kv: Pool | None
    grid_q: Grid
    grid_kv: Grid
    residual: str
    table_rows: Grid

    @property
    def head_dim(self) -> int:
        return self.att_dim // self.heads

    @property
    def num_tokens(self) -> int:
        """N, the cls token included."""
        return self.has_cls + tokens(self.grid)

    @property
    def num_q(self) -> int:
        """Lq, the cls token included."""
        return self.has_cls + tokens(self.grid_q)

    @property
    def num_kv(self) -> int:
        """Lkv, the cls token included."""
        return self.has_cls + tokens(self.grid_kv)

    @property
    def scores(self) -> int:
        """Entries of the score matrices of one sample, all heads."""
        return self.heads * self.num_q * self.num_kv


def layer_shapes(model: str | MViTConfig, **overrides: Any) -> list[LayerShape]:
    """One :class:`LayerShape` per block of a published model or of a configuration.

        layer_shapes("mvit_v2_s_16x4", num_frames=32)

    Raises:
        ValueError, TypeError: as :func:`mvit_kernels.models.create`.
    """
    if isinstance(model, MViTConfig):
        if overrides:
            raise TypeError(f"layer_shapes: overrides {', '.join(overrides)} with a configuration, a name is right")
        cfg = model
    else:
        cfg = model_config(model, **overrides)
    pool_mode = cfg.mode.removesuffix("_unshared")
    grid, shapes = cfg.grid, []
    for i, (block, input_size) in enumerate(zip(cfg.blocks(), cfg.input_sizes(), strict=True)):
        pool_q = _pool(pool_mode, "q", block.kernel_q, block.stride_q)
        pool_kv = _pool(pool_mode, "kv", block.kernel_kv, block.stride_kv)
        grid_q = pool_q.out_grid(grid) if pool_q else grid
        side = max(input_size[1:])
        rows = 2 * max(*(side // pool.stride[1] if pool else side for pool in (pool_q, pool_kv)), 1) - 1
        shapes.append(
            LayerShape(
                block=i,
                dim=block.dim,
                att_dim=block.dim_out if cfg.dim_mul_in_att else block.dim,
                dim_out=block.dim_out,
                heads=block.num_heads,
                has_cls=cfg.cls_embed_on,
                grid=grid,
                pool_q=pool_q,
                pool_kv=pool_kv,
                grid_q=grid_q,
                grid_kv=pool_kv.out_grid(grid) if pool_kv else grid,
                residual=cfg.residual if cfg.residual_pooling else "none",
                table_rows=(
                    (2 * input_size[0] - 1) * cfg.rel_pos_temporal,
                    rows * cfg.rel_pos_spatial,
                    rows * cfg.rel_pos_spatial,
                ),
            )
        )
        grid = grid_q
    return shapes


def _pool(mode: str, branch: str, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Pool | None:
    pooling = arguments.pooling("layer_shapes", branch, kernel, stride)
    if pooling is None:
        return None
    (t, h, w), checked_stride = pooling
    return Pool(mode, (t, h, w), checked_stride, (t // 2, h // 2, w // 2))
