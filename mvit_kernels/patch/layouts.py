"""The ways in which libraries call their attention layers, each as a :class:`~.adapter.Layout`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import mhpa
from ..description import MHPA, PoolNorm, RelPos
from ..problem import Grid, Pool, tokens
from .adapter import Layout, NotCovered, Random


def small_grid(layer: MHPA, dims: int = 3) -> Grid:
    """A grid, wider than high where the tables allow it, on which every branch keeps more than one token per axis, in
    more than one window."""
    pools = [branch.pool for branch in layer.pools if isinstance(branch, PoolNorm)]
    if layer.host_pooling:
        pools.append(Pool("conv", (3, 3, 3), (2, 8, 8), (1, 1, 1)))  # its geometry is not known here
    # One more than the stride: a stored table that is not interpolated holds for it. PyTorch's average takes no grid
    # smaller than its kernel.
    t, h, w = (
        max(
            max((pool.stride[axis] + 1 for pool in pools), default=2),
            *(p.kernel[axis] for p in pools if p.mode == "avg"),
            2,
        )
        for axis in range(3)
    )
    if layer.windows is not None:
        stride = layer.pool_q.pool.stride[1] if isinstance(layer.pool_q, PoolNorm) else 1
        return 1, h, stride * layer.windows.q[1] + w
    return (t if dims == 3 else 1), h, w + _holds_wider(layer.rel_pos, w)


def _holds_wider(rel_pos: RelPos | None, w: int) -> bool:
    """The stored table, where it is not interpolated, has rows for w + 1 tokens."""
    return rel_pos is None or rel_pos.w is None or "w" in rel_pos.resized or len(rel_pos.w) >= 2 * (w + 1) - 1


def tokens_and_grid(name: str, dims: int, returns: Callable[[Sequence[int]], Any], *, always: bool = False) -> Layout:
    """forward(x, grid) -> (x, grid): x (B, has_cls + tokens, C), the grid of `dims` axes.

    Args:
        name: the grid's name in the host's signature.
        returns: makes the returned grid from a pooled one.
        always: also where q is not pooled; else the grid comes back as it was given.
    """

    def run(module: Any, layer: MHPA, x: Tensor, grid: Sequence[int]) -> tuple[Tensor, Any]:
        out, pooled = mhpa.forward(layer, x, (1, *grid) if dims == 2 else grid)
        if layer.pool_q is None and not always:
            return out, grid
        return out, returns(tuple(pooled)[3 - dims :])

    def named(module: Any, layer: MHPA, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
        if name in kwargs:
            kwargs["grid"] = kwargs.pop(name)
        return run(module, layer, *args, **kwargs)

    def example(module: Any, layer: MHPA, random: Random) -> tuple[Any, ...]:
        grid = small_grid(layer, dims)
        x = random(1, layer.has_cls + tokens(grid), layer.channels)
        return x, returns(grid[3 - dims :])

    return Layout(("x", name), named, example)


def feature_map(name: str = "x", *optional: str, second: bool = False) -> Layout:
    """forward(x) -> x: (B, H, W, C) -> (B, H', W', A).

    Args:
        name: the map's name in the host's signature.
        optional: further parameters; one that is true asks for what a fused layer does not have.
        second: a tuple comes back, None in the place of the attention weights.
    """

    def run(module: Any, layer: MHPA, x: Tensor, **asked: Any) -> Any:
        if any(asked.values()):
            raise NotCovered(f"{', '.join(asked)} asked for")
        out, grid = mhpa.forward(layer, x.flatten(1, 2), (1, x.shape[1], x.shape[2]))
        y = out.unflatten(1, tuple(grid[1:]) if layer.looks_at_grid else x.shape[1:3])
        return (y, None) if second else y

    def named(module: Any, layer: MHPA, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip((name, *(n for n in optional if n != "**")), args, strict=False)) | kwargs
        return run(module, layer, given.pop(name), **given)

    def example(module: Any, layer: MHPA, random: Random) -> tuple[Any, ...]:
        _, height, width = small_grid(layer, 2) if layer.pooled else (1, 5, 4)
        return (random(1, height, width, layer.channels),)

    return Layout((name, *optional), named, example)


def mask_units(name: str, stride: str, *optional: str, second: bool = False) -> Layout:
    """Hiera: forward(x) -> x on tokens in unrolled order, attention inside mask units or over all.

    Token (s, w, u) of (q_stride, window, units) is at (s * window + w) * units + u, so that the maximum over the
    stride's axis is a pooling (`Unroll` in facebookresearch/hiera, hiera/hiera_utils.py).

    Args:
        name: the tokens' name in the host's signature.
        stride: the name of the module's attribute that holds the flattened q stride.
    """

    def run(module: Any, layer: MHPA, x: Tensor, **asked: Any) -> Any:
        if any(asked.values()):
            raise NotCovered(f"{', '.join(asked)} asked for")
        batch, count, q_stride = x.shape[0], x.shape[1], getattr(module, stride)
        units = count // (q_stride * module.window_size) if module.use_mask_unit_attn else 1
        inside = x.unflatten(1, (-1, units)).transpose(1, 2).flatten(0, 1)
        out, _ = mhpa.forward(layer, inside, (q_stride, 1, inside.shape[1] // q_stride))
        y = out.unflatten(0, (batch, units)).transpose(1, 2).flatten(1, 2)
        return (y, None) if second else y

    def named(module: Any, layer: MHPA, *args: Any, **kwargs: Any) -> Any:
        given = dict(zip((name, *optional), args, strict=False)) | kwargs
        return run(module, layer, given.pop(name), **given)

    def example(module: Any, layer: MHPA, random: Random) -> tuple[Any, ...]:
        window = module.window_size if module.use_mask_unit_attn else 3
        units = 3 if module.use_mask_unit_attn else 1
        return (random(1, getattr(module, stride) * window * units, layer.channels),)

    return Layout((name, *optional), named, example)


def as_size(grid: Sequence[int]) -> torch.Size:
    return torch.Size(grid)
