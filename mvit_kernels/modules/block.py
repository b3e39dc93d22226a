"""The transformer block around the attention: norms, skip path, MLP. SlowFast's constructor and state-dict names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .. import ops
from . import arguments
from .attention import MultiHeadPoolingAttention
from .drop_path import DropPath
from .mlp import Mlp
from .pooling import PoolModule, describe_pool, make_pool


class MultiScaleBlock(nn.Module):
    """Multiscale transformer block of MViT (section 3.2) and MViTv2 (section 4.1).

        x = skip(x) + attention(norm1(x));  x = x + mlp(norm2(x))

    skip max-pools where q is strided (kernel stride + 1, the cls token left out). Channels change by projecting the
    *normalised* tokens, on the skip path of the attention (dim_mul_in_att) or of the MLP.

    Constructor, state-dict names and numbers are those of `MultiScaleBlock` in SlowFast's slowfast/models/attention.py;
    the arguments it shares with :class:`MultiHeadPoolingAttention` are described there.

    Args:
        mlp_ratio: hidden channels of the MLP over its input channels.
        qk_scale: SlowFast takes and ignores it; None is right.
        drop_path: stochastic depth, per sample.
        layer_scale_init_value: start of the per-channel scales gamma_1 and gamma_2; 0 for none.
        up_rate: dim_out / dim where given.
        dim_mul_in_att: change channels in the attention instead of in the MLP.
    Raises:
        ValueError, TypeError: an argument that does not fit, named with what would.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        num_heads: int,
        input_size: Sequence[int],
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        drop_path: float = 0.0,
        layer_scale_init_value: float = 0.0,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        up_rate: int | None = None,
        kernel_q: Sequence[int] = (1, 1, 1),
        kernel_kv: Sequence[int] = (1, 1, 1),
        stride_q: Sequence[int] = (1, 1, 1),
        stride_kv: Sequence[int] = (1, 1, 1),
        mode: str = "conv",
        has_cls_embed: bool = True,
        pool_first: bool = False,
        rel_pos_spatial: bool = False,
        rel_pos_temporal: bool = False,
        rel_pos_zero_init: bool = False,
        residual_pooling: bool = False,
        dim_mul_in_att: bool = False,
        separate_qkv: bool = False,
        *,
        rel_pos_index: str = "slowfast",
        residual: str = "no_cls",
    ) -> None:
        super().__init__()
        owner = "MultiScaleBlock"
        arguments.positive_int(owner, "dim", dim)
        arguments.positive_int(owner, "dim_out", dim_out)
        arguments.probability(owner, "drop_path", drop_path)
        if qk_scale is not None:
            raise ValueError(f"{owner}: qk_scale is {qk_scale}, None is right (the scale is head_dim ** -0.5)")
        if up_rate is not None and up_rate > 1 and dim * up_rate != dim_out:
            raise ValueError(f"{owner}: up_rate is {up_rate}, dim_out / dim = {dim_out} / {dim} is right")
        if not mlp_ratio > 0:
            raise ValueError(f"{owner}: mlp_ratio is {mlp_ratio}, a positive number is right")
        att_dim = dim_out if dim_mul_in_att else dim

        self.dim = dim
        self.dim_out = dim_out
        self.dim_mul_in_att = dim_mul_in_att
        self.has_cls_embed = has_cls_embed
        self.norm1 = arguments.layer_norm(owner, norm_layer(dim), dim)
        self.attn = MultiHeadPoolingAttention(
            dim,
            att_dim,
            input_size,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            drop_rate=drop_rate,
            kernel_q=kernel_q,
            kernel_kv=kernel_kv,
            stride_q=stride_q,
            stride_kv=stride_kv,
            norm_layer=norm_layer,
            has_cls_embed=has_cls_embed,
            mode=mode,
            pool_first=pool_first,
            rel_pos_spatial=rel_pos_spatial,
            rel_pos_temporal=rel_pos_temporal,
            rel_pos_zero_init=rel_pos_zero_init,
            residual_pooling=residual_pooling,
            separate_qkv=separate_qkv,
            rel_pos_index=rel_pos_index,
            residual=residual,
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = arguments.layer_norm(owner, norm_layer(att_dim), att_dim)
        self.mlp = Mlp(att_dim, int(att_dim * mlp_ratio), dim_out, act_layer, drop_rate)
        self.gamma_1: nn.Parameter | None = None
        self.gamma_2: nn.Parameter | None = None
        if layer_scale_init_value > 0.0:
            self.gamma_1 = nn.Parameter(torch.full((att_dim,), layer_scale_init_value))
            self.gamma_2 = nn.Parameter(torch.full((dim_out,), layer_scale_init_value))
        if dim != dim_out:
            self.proj = nn.Linear(dim, dim_out)
        self.pool_skip: PoolModule | None = None
        if any(s > 1 for s in stride_q):
            t, h, w = (s + 1 if s > 1 else s for s in stride_q)
            self.pool_skip = make_pool("max", att_dim, (t, h, w), (stride_q[0], stride_q[1], stride_q[2]))

    def forward(
        self, x: Tensor, thw_shape: Sequence[int] | None = None
    ) -> Tensor | tuple[Tensor, Sequence[int] | None]:
        """One block.

        Args:
            x: (B, N, dim), N = has_cls_embed + T*H*W, the cls token first.
            thw_shape: (T, H, W); None is enough where nothing is pooled and there is no relative position.
        Returns:
            (B, N', dim_out) and the pooled grid, a list of 3; the tensor alone where thw_shape is None, as in SlowFast.
        Raises:
            ValueError, TypeError: an argument that does not fit, named with what would.
        """
        changes_channels = self.dim != self.dim_out
        normed = self.norm1(x)
        attended, thw_new = self.attn(normed, thw_shape)
        skip = self.proj(normed) if changes_channels and self.dim_mul_in_att else x
        x = self._pool_skip(skip, thw_shape) + self.drop_path(_scaled(attended, self.gamma_1))

        normed = self.norm2(x)
        skip = self.proj(normed) if changes_channels and not self.dim_mul_in_att else x
        x = skip + self.drop_path(_scaled(self.mlp(normed), self.gamma_2))
        return x if thw_shape is None else (x, thw_new)

    def _pool_skip(self, x: Tensor, thw: Sequence[int] | None) -> Tensor:
        branch = describe_pool(self.pool_skip, None)
        if branch is None:
            return x
        return ops.pool3d_norm(x.unsqueeze(1), thw, branch.pool, has_cls=self.has_cls_embed).squeeze(1)  # type: ignore[arg-type]


def _scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else gamma * x
