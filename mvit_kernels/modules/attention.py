"""Multi-Head Pooling Attention with parameters of its own: SlowFast's constructor and state-dict names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .. import mhpa
from ..description import MHPA, Fused, RelPos, Separate
from ..hooks import has_hooks, inactive_dropout
from ..rel_pos_tables import slowfast_index, torchvision_index
from . import arguments
from .pooling import PoolModule, describe_pool, make_pool

MODES = ("conv", "conv_unshared", "avg", "max")
INDEX_FORMULAS = {"slowfast": slowfast_index, "torchvision": torchvision_index}


class MultiHeadPoolingAttention(nn.Module):
    """Multi-Head Pooling Attention of MViT (arXiv 2104.11227) and MViTv2 (arXiv 2112.01526).

    Constructor, state-dict names and numbers are those of `MultiScaleAttention` in SlowFast's
    slowfast/models/attention.py. Two keyword-only arguments reach the variants of torchvision's `MultiscaleAttention`.

    Args:
        dim, dim_out: channels before and after the projections; the head dim is dim_out / num_heads.
        input_size: (T, H, W) token grid the relative-position tables are sized for; tables are resized in the forward
            where the grid differs. Not looked at without relative position.
        qkv_bias: biases in the projections to q, k and v.
        drop_rate: dropout on the output projection.
        kernel_q, kernel_kv, stride_q, stride_kv: pooling per axis with padding kernel // 2. An empty kernel, or kernel
            and stride all ones, is no pooling and no norm.
        norm_layer: makes the LayerNorm behind a pooling convolution from its channel count.
        has_cls_embed: token 0 is a cls token: it is not pooled.
        mode: "conv" (depthwise, shared by the heads), "conv_unshared" (per channel, needs pool_first), "avg" or "max".
        pool_first: pool before the projections, which are then separate.
        rel_pos_spatial, rel_pos_temporal: decomposed relative position over h and w, and over t.
        rel_pos_zero_init: start its tables at zero.
        residual_pooling: add the pooled q to the attended values.
        separate_qkv: a projection each for q, k and v.
        rel_pos_index: "slowfast" or "torchvision": whose rounding picks rows of the tables (:mod:`..rel_pos_tables`).
        residual: where residual_pooling adds q: "no_cls", not on the cls row (SlowFast), or "all" rows.
    Raises:
        ValueError, TypeError: an argument that does not fit, named with what would.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        input_size: Sequence[int],
        num_heads: int = 8,
        qkv_bias: bool = False,
        drop_rate: float = 0.0,
        kernel_q: Sequence[int] = (1, 1, 1),
        kernel_kv: Sequence[int] = (1, 1, 1),
        stride_q: Sequence[int] = (1, 1, 1),
        stride_kv: Sequence[int] = (1, 1, 1),
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        has_cls_embed: bool = True,
        mode: str = "conv",
        pool_first: bool = False,
        rel_pos_spatial: bool = False,
        rel_pos_temporal: bool = False,
        rel_pos_zero_init: bool = False,
        residual_pooling: bool = False,
        separate_qkv: bool = False,
        *,
        rel_pos_index: str = "slowfast",
        residual: str = "no_cls",
    ) -> None:
        super().__init__()
        owner = "MultiHeadPoolingAttention"
        arguments.positive_int(owner, "dim", dim)
        arguments.positive_int(owner, "dim_out", dim_out)
        arguments.positive_int(owner, "num_heads", num_heads)
        arguments.probability(owner, "drop_rate", drop_rate)
        arguments.choice(owner, "mode", mode, MODES)
        arguments.choice(owner, "rel_pos_index", rel_pos_index, tuple(INDEX_FORMULAS))
        arguments.choice(owner, "residual", residual, ("no_cls", "all"))
        if mode == "conv_unshared" and not pool_first:
            raise ValueError(f"{owner}: mode is 'conv_unshared' but pool_first is False, pool_first=True is right")
        if dim_out % num_heads:
            raise ValueError(f"{owner}: dim_out is {dim_out}, a multiple of num_heads {num_heads} is right")
        if pool_first and dim % num_heads:
            raise ValueError(f"{owner}: dim is {dim}, a multiple of num_heads {num_heads} is right with pool_first")
        q_pooling = arguments.pooling(owner, "q", kernel_q, stride_q)
        kv_pooling = arguments.pooling(owner, "kv", kernel_kv, stride_kv)

        self.dim_out = dim_out
        self.num_heads = num_heads
        self.drop_rate = drop_rate
        self.has_cls_embed = has_cls_embed
        self.mode = mode
        self.pool_first = pool_first
        self.separate_qkv = separate_qkv
        self.rel_pos_spatial = rel_pos_spatial
        self.rel_pos_temporal = rel_pos_temporal
        self.rel_pos_index = rel_pos_index
        self.residual_pooling = residual_pooling
        self.residual = residual
        head_dim = dim_out // num_heads
        self.scale = head_dim**-0.5

        if pool_first or separate_qkv:
            self.q = nn.Linear(dim, dim_out, bias=qkv_bias)
            self.k = nn.Linear(dim, dim_out, bias=qkv_bias)
            self.v = nn.Linear(dim, dim_out, bias=qkv_bias)
        else:
            self.qkv = nn.Linear(dim, 3 * dim_out, bias=qkv_bias)
        self.proj = nn.Linear(dim_out, dim_out)
        if drop_rate > 0.0:
            self.proj_drop = nn.Dropout(drop_rate)

        pooled_width = dim if pool_first else dim_out
        channels = pooled_width if mode == "conv_unshared" else pooled_width // num_heads
        self.pool_q: PoolModule | None = make_pool(mode, channels, *q_pooling) if q_pooling else None
        self.pool_k: PoolModule | None = make_pool(mode, channels, *kv_pooling) if kv_pooling else None
        self.pool_v: PoolModule | None = make_pool(mode, channels, *kv_pooling) if kv_pooling else None

        def make_norm(pool: PoolModule | None) -> nn.Module | None:
            return arguments.layer_norm(owner, norm_layer(channels), channels) if isinstance(pool, nn.Conv3d) else None

        self.norm_q, self.norm_k, self.norm_v = make_norm(self.pool_q), make_norm(self.pool_k), make_norm(self.pool_v)

        if rel_pos_spatial or rel_pos_temporal:
            frames, height, width = arguments.three_positive_ints(owner, "input_size", input_size)
            size = max(height, width)
            # Floor division and only the h stride, as in SlowFast: where the grid is longer the table is resized.
            sizes = [size // pooling[1][1] if pooling else size for pooling in (q_pooling, kv_pooling)]
            rows = 2 * max(*sizes, 1) - 1
            if rel_pos_spatial:
                self.rel_pos_h = _table(rows, head_dim, rel_pos_zero_init)
                self.rel_pos_w = _table(rows, head_dim, rel_pos_zero_init)
            if rel_pos_temporal:
                self.rel_pos_t = _table(2 * frames - 1, head_dim, rel_pos_zero_init)

    def describe(self) -> MHPA:
        """This layer as data, with the parameters it holds now."""
        rel_pos = None
        if self.rel_pos_spatial or self.rel_pos_temporal:
            rel_pos = RelPos(
                t=self.rel_pos_t if self.rel_pos_temporal else None,
                h=self.rel_pos_h if self.rel_pos_spatial else None,
                w=self.rel_pos_w if self.rel_pos_spatial else None,
                index=INDEX_FORMULAS[self.rel_pos_index],
            )
        separate = self.pool_first or self.separate_qkv
        return MHPA(
            heads=self.num_heads,
            scale=self.scale,
            has_cls=self.has_cls_embed,
            qkv=Separate(self.q, self.k, self.v) if separate else Fused(self.qkv),
            out=self._project_out,
            pool_q=describe_pool(self.pool_q, self.norm_q),
            pool_k=describe_pool(self.pool_k, self.norm_k),
            pool_v=describe_pool(self.pool_v, self.norm_v),
            rel_pos=rel_pos,
            residual=self.residual if self.residual_pooling else "none",
            pool_first=self.pool_first,
            pool_heads=1 if self.mode == "conv_unshared" else self.num_heads,
            out_linear=self.proj if self._projects_alone() else None,
        )

    def forward(self, x: Tensor, thw_shape: Sequence[int] | None) -> tuple[Tensor, list[int] | None]:
        """Attend over pooled tokens.

        Args:
            x: (B, N, dim), N = has_cls_embed + T*H*W, the cls token first.
            thw_shape: (T, H, W), ints or 0-dim tensors; not looked at where nothing is pooled and there is no relative
                position, and may then be None.
        Returns:
            (B, N', dim_out) and the pooled q grid, a list of 3.
        Raises:
            ValueError, TypeError: an argument that does not fit, named with what would.
        """
        out, grid = mhpa.forward(self.describe(), x, thw_shape)  # type: ignore[arg-type]
        return out, None if grid is None else list(grid)

    def _projects_alone(self) -> bool:
        """The output is the projection and nothing else now."""
        drops = self.drop_rate > 0.0 and not inactive_dropout(self.proj_drop)
        return type(self.proj) is nn.Linear and not has_hooks(self.proj) and not drops

    def _project_out(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return self.proj_drop(x) if self.drop_rate > 0.0 else x


def _table(rows: int, head_dim: int, zero_init: bool) -> nn.Parameter:
    table = nn.Parameter(torch.zeros(rows, head_dim))
    return table if zero_init else nn.init.trunc_normal_(table, std=0.02)  # type: ignore[return-value]
