"""The pooling operator P(.; k, s, p) of MViT (arXiv 2104.11227, section 3.1), followed by LayerNorm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..problem import Grid, Pool, tokens


def pool3d_norm(
    x: Tensor,
    thw: Grid,
    pool: Pool,
    *,
    has_cls: bool,
    weight: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float | None = None,
) -> Tensor:
    """Pool tokens over space-time, then normalise over the head dim.

    Args:
        x: (B, H, has_cls + T*H*W, D), the cls token first.
        weight: (D, 1, kt, kh, kw), shared by the heads, or (H*D, 1, kt, kh, kw), one filter per channel; conv only.
        norm_weight, norm_bias: (D,) each, or None.
        norm_eps: LayerNorm's eps; None leaves the norm out.
    Returns:
        (B, H, has_cls + tokens of the pooled grid, D). The cls token is normalised but not pooled.
    """
    batch, heads, _, dim = x.shape
    cls, grid = x[:, :, : int(has_cls)], x[:, :, int(has_cls) :]
    grid = grid.unflatten(2, thw).movedim(-1, 2)  # (B, H, D, T, H, W)
    if pool.mode == "conv":
        assert weight is not None
        channels = weight.shape[0]
        # Shared by the heads: heads join the batch. Per channel: heads join the channels.
        folded = grid.flatten(0, 1) if channels == dim else grid.flatten(1, 2)
        if x.dtype == torch.bfloat16:
            # PyTorch's CPU backward (2.14) computes a wrong weight gradient from token-major bfloat16 input.
            folded = folded.contiguous()
        pooled = F.conv3d(folded, weight.to(x.dtype), None, pool.stride, pool.padding, groups=channels)
    elif pool.mode == "avg":
        # The padding counts in the mean; put there beforehand, as avg_pool3d refuses a grid smaller than its kernel.
        t, h, w = pool.padding
        padded = F.pad(grid.flatten(0, 1), (w, w, h, h, t, t))
        # PyTorch has no avg_pool3d in half precision on the CPU.
        pooled = F.avg_pool3d(_at_least_float32(padded), pool.kernel, pool.stride).to(x.dtype)
    else:
        pooled = F.max_pool3d(grid.flatten(0, 1), pool.kernel, pool.stride, pool.padding)
    pooled = pooled.reshape(batch, heads, dim, tokens(pool.out_grid(thw)))
    y = torch.cat((cls, pooled.transpose(2, 3)), dim=2)
    if norm_eps is None:
        return y
    # Under autocast on a GPU layer_norm returns float32.
    return F.layer_norm(y, (dim,), _like(norm_weight, y), _like(norm_bias, y), norm_eps).to(x.dtype)


def qkv_pool3d_norm(
    x: Sequence[Tensor],
    thw: Sequence[Grid],
    pool: Sequence[Pool],
    *,
    has_cls: bool,
    weight: Sequence[Tensor | None],
    norm_weight: Sequence[Tensor | None],
    norm_bias: Sequence[Tensor | None],
    norm_eps: Sequence[float | None],
) -> list[Tensor]:
    """:func:`pool3d_norm` of one to three branches, each with its own grid, pool and parameters."""
    return [
        pool3d_norm(x_, thw_, pool_, has_cls=has_cls, weight=w, norm_weight=nw, norm_bias=nb, norm_eps=eps)
        for x_, thw_, pool_, w, nw, nb, eps in zip(x, thw, pool, weight, norm_weight, norm_bias, norm_eps, strict=True)
    ]


def _like(parameter: Tensor | None, y: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(y.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
