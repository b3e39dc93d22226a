"""The shape changes that all libraries share: convolution axes, fused and separate q, k, v, resized position tables."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CONV = re.compile(r"(patch_embed\.proj|blocks\.\d+\.attn\.pool_[qkv])\.weight")
TABLE = re.compile(r"blocks\.\d+\.attn\.rel_pos_[hwt]|pos_embed_temporal")
JOINT = ("pos_embed", "pos_embed_spatial")


class ShapeError(ValueError):
    """A tensor that cannot have the shape asked for; the message says why."""


def with_conv_axes(kernel: Tensor, axes: int) -> Tensor:
    """A convolution's weight (out, in, *kernel) with `axes` kernel axes: a time axis of size 1 is added or dropped.

    Raises:
        ShapeError: the kernel to drop time from is longer than 1 in time.
    """
    if kernel.dim() == axes + 2:
        return kernel
    if (kernel.dim(), axes) == (4, 3):
        return kernel.unsqueeze(2)
    if (kernel.dim(), axes) == (5, 2):
        if kernel.shape[2] != 1:
            raise ShapeError(f"has shape {tuple(kernel.shape)}, a 2D convolution needs a kernel of 1 in time")
        return kernel.squeeze(2)
    raise ShapeError(f"has shape {tuple(kernel.shape)}, a convolution's 4 or 5 axes are right")


def fused(q: Tensor, others: Sequence[Tensor]) -> Tensor:
    """q's weight (dim, in) or bias (dim,) and the k's and v's like it, as one of (3*dim, ...).

    Raises:
        ShapeError: they are not alike.
    """
    if any(other.shape != q.shape for other in others):
        shapes = ", ".join(str(tuple(part.shape)) for part in (q, *others))
        raise ShapeError(f"is one of q, k, v with shapes {shapes}, the same for all is right")
    return torch.cat((q, *others))


def separate(qkv: Tensor) -> tuple[Tensor, ...]:
    """A fused weight (3*dim, in) or bias (3*dim,) as q's, k's and v's, each with memory of its own.

    Raises:
        ShapeError: the rows are not three times as many as something.
    """
    if qkv.dim() == 0 or qkv.shape[0] % 3:
        raise ShapeError(f"has shape {tuple(qkv.shape)}, rows for q, k and v alike are right")
    return tuple(part.clone() for part in qkv.chunk(3))


def fitted(hub_name: str, tensor: Tensor, shape: torch.Size, *, one_frame: bool) -> Tensor:
    """The tensor in the shape of the target's parameter.

    Args:
        hub_name: SlowFast's name, which says what the tensor is.
        one_frame: a joint position table has no time axis.
    Raises:
        ShapeError: nothing this kind of tensor allows makes the shape.
    """
    if tensor.shape == shape:
        return tensor
    if CONV.fullmatch(hub_name) and len(shape) in (4, 5):
        tensor = with_conv_axes(tensor, len(shape) - 2)
        if tensor.shape == shape:
            return tensor
    elif tensor.shape[-1:] == shape[-1:] and tensor.numel() and shape.numel():
        rows, wanted = tensor.reshape(-1, shape[-1]), shape.numel() // shape[-1]
        if TABLE.fullmatch(hub_name):
            return resized(rows, (wanted,)).reshape(shape)
        if hub_name in JOINT:
            if hub_name == "pos_embed" and not one_frame:
                raise ShapeError(
                    f"has shape {tuple(tensor.shape)}, the target {tuple(shape)}: a table of several frames does not "
                    "say its grid"
                )
            # A class token's row is in front where both lengths say so: n and n - 1 are not both squares.
            for cls in (0, 1) if hub_name == "pos_embed" else (0,):
                side, new = _side(len(rows) - cls), _side(wanted - cls)
                if side and new:
                    grid = resized(rows[cls:].unflatten(0, (side, side)), (new, new))
                    return torch.cat((rows[:cls], grid.flatten(0, 1))).reshape(shape)
            raise ShapeError(
                f"has shape {tuple(tensor.shape)}, the target {tuple(shape)}: only tables of square grids are resized"
            )
    raise ShapeError(f"has shape {tuple(tensor.shape)}, the target {tuple(shape)}")


def resized(table: Tensor, size: Sequence[int]) -> Tensor:
    """(*grid, C) -> (*size, C) by linear interpolation as the models do it when they run at another size.

    Half precision is interpolated in float32.
    """
    if tuple(table.shape[:-1]) == tuple(size):
        return table
    mode = {1: "linear", 2: "bilinear"}[len(size)]
    exact = table if table.dtype == torch.float64 else table.float()
    grid = F.interpolate(exact.movedim(-1, 0).unsqueeze(0), size=tuple(size), mode=mode)
    return grid.squeeze(0).movedim(0, -1).to(table.dtype)


def _side(tokens: int) -> int:
    """The side of a square grid, 0 where it is none."""
    side = math.isqrt(max(tokens, 0))
    return side if side * side == tokens else 0
