"""Argument checks shared by the ops. Each failure is one line: function, argument, what it was, what would be right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..problem import POOL_MODES, Grid, Pool, tokens

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
AXES = ("t", "h", "w")


def tensor(op: str, name: str, x: Tensor, rank: int, layout: str) -> None:
    floating(op, name, x, f" {layout}")
    if x.dim() != rank:
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, {layout} is right")


def floating(op: str, name: str, x: Tensor, layout: str = "") -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} is a {type(x).__name__}, a tensor{layout} is right")
    if x.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} has dtype {x.dtype}, float32, bfloat16, float16 or float64 is right")


def same_device(op: str, first: tuple[str, Tensor], *others: tuple[str, Tensor | None]) -> None:
    for name, x in others:
        if x is not None and x.device != first[1].device:
            raise ValueError(f"{op}: {name} is on {x.device}, {first[1].device} like {first[0]} is right")


def grid(op: str, name: str, value: Sequence[Any]) -> Grid:
    """Three positive ints, symbolic ones included; 0-dim tensors are taken as ints."""
    sizes: tuple[Any, ...] = ()
    if isinstance(value, Iterable):
        sizes = tuple(n.item() if isinstance(n, Tensor) else n for n in value)
        sizes = tuple(int(n) if isinstance(n, Integral) else n for n in sizes)
    if len(sizes) != 3 or any(not isinstance(n, (int, torch.SymInt)) or n < 1 for n in sizes):
        shown = value if sizes == () else sizes
        raise ValueError(f"{op}: {name} is {shown}, three positive ints (T, H, W) are right")
    return sizes[0], sizes[1], sizes[2]


def token_count(op: str, name: str, x: Tensor, dim: int, thw: Grid, has_cls: bool, grid_name: str = "thw") -> None:
    expected = tokens(thw) + int(has_cls)
    if x.shape[dim] != expected:
        cls = " (+1 cls)" if has_cls else ""
        found = f"{name} has {x.shape[dim]} tokens in dim {dim}"
        raise ValueError(f"{op}: {grid_name} {tuple(thw)} has {tokens(thw)} tokens{cls}, but {found}")


def pool(op: str, value: Pool, thw: Grid) -> None:
    if value.mode not in POOL_MODES:
        raise ValueError(f"{op}: mode is {value.mode!r}, one of {', '.join(POOL_MODES)} is right")
    for name, sizes, least in (("kernel", value.kernel, 1), ("stride", value.stride, 1), ("padding", value.padding, 0)):
        if len(sizes) != 3 or any(not isinstance(n, int) or n < least for n in sizes):
            raise ValueError(f"{op}: {name} is {tuple(sizes)}, three ints of at least {least} are right")
    if value.mode != "conv" and any(2 * p > k for p, k in zip(value.padding, value.kernel, strict=True)):
        raise ValueError(
            f"{op}: padding is {value.padding}, at most half of kernel {value.kernel} is right for mode {value.mode!r}"
        )
    if min(value.out_grid(thw)) < 1:
        raise ValueError(
            f"{op}: kernel {value.kernel} with padding {value.padding} is larger than thw {tuple(thw)}, "
            "a kernel that fits the padded grid is right"
        )


def pool_parameters(
    op: str,
    x: Tensor,
    value: Pool,
    weight: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float | None,
) -> None:
    heads, dim = x.shape[1], x.shape[3]
    if value.mode == "conv":
        if weight is None:
            raise ValueError(f"{op}: weight is None, a weight of shape ({dim}, 1, *kernel) is right for mode 'conv'")
        _parameter(op, "weight", weight)
        shapes = [(channels, 1, *value.kernel) for channels in sorted({dim, heads * dim})]
        if tuple(weight.shape) not in shapes:
            raise ValueError(f"{op}: weight has shape {tuple(weight.shape)}, {' or '.join(map(str, shapes))} is right")
    elif weight is not None:
        raise ValueError(f"{op}: weight was given, None is right for mode {value.mode!r}")
    if norm_eps is None:
        if norm_weight is not None or norm_bias is not None:
            raise ValueError(f"{op}: norm_eps is None but a norm weight or bias was given, a finite norm_eps is right")
    elif not 0 <= norm_eps < math.inf:  # False for NaN; a symbolic float can't go into math.isfinite
        raise ValueError(f"{op}: norm_eps is {norm_eps}, a finite number of at least 0 is right")
    for name, parameter in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        if parameter is not None:
            _parameter(op, name, parameter)
            if tuple(parameter.shape) != (dim,):
                raise ValueError(f"{op}: {name} has shape {tuple(parameter.shape)}, ({dim},) is right")
    same_device(op, ("x", x), ("weight", weight), ("norm_weight", norm_weight), ("norm_bias", norm_bias))


def _parameter(op: str, name: str, parameter: Tensor) -> None:
    if not isinstance(parameter, Tensor) or parameter.dtype not in FLOATING:
        kind = getattr(parameter, "dtype", type(parameter).__name__)
        raise TypeError(f"{op}: {name} has dtype {kind}, float32, bfloat16, float16 or float64 is right")


def table(op: str, axis: int, value: Tensor | None, q: Tensor, grid_q: Grid, grid_k: Grid) -> None:
    if value is None:
        return
    name = f"table_{AXES[axis]}"
    tensor(op, name, value, 3, "(queries, keys, head dim)")
    shape = (grid_q[axis], grid_k[axis], q.shape[3])
    if tuple(value.shape) != shape:
        raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}, {shape} is right")


def layer(op: str, prefix: str, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, like: str) -> tuple[int, int]:
    """Inputs and outputs of a linear layer whose arguments are called `prefix` + "weight" and `prefix` + "bias"."""
    name = f"{prefix}weight"
    tensor(op, name, weight, 2, "(N, K)")
    outputs, inputs = weight.shape
    if inputs < 1:
        raise ValueError(f"{op}: {name} has shape {tuple(weight.shape)}, at least one input is right")
    same_or_float32(op, name, weight, dtype, like)
    if bias is not None:
        tensor(op, f"{prefix}bias", bias, 1, "(N,)")
        if bias.shape[0] != outputs:
            raise ValueError(f"{op}: {prefix}bias has shape {tuple(bias.shape)}, ({outputs},) is right")
    return inputs, outputs


def norm(op: str, prefix: str, channels: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    """A LayerNorm over `channels` whose parameters are called `prefix` + "weight" and `prefix` + "bias"."""
    for name, parameter in ((f"{prefix}weight", weight), (f"{prefix}bias", bias)):
        if parameter is not None:
            tensor(op, name, parameter, 1, "(C,)")
            if parameter.shape[0] != channels:
                raise ValueError(f"{op}: {name} has shape {tuple(parameter.shape)}, ({channels},) is right")
    if not (math.isfinite(eps) and eps >= 0):
        raise ValueError(f"{op}: eps is {eps}, a finite number of at least 0 is right")


def channels(op: str, x: Tensor) -> int:
    """C of x (..., C)."""
    floating(op, "x", x)
    if x.dim() < 1 or x.shape[-1] < 1:
        raise ValueError(f"{op}: x has shape {tuple(x.shape)}, (..., C) with C >= 1 is right")
    return x.shape[-1]


def narrower(op: str, dtype: torch.dtype, x: Tensor) -> None:
    """`dtype` is that of x, or a half one for float32."""
    if dtype != x.dtype and not (x.dtype == torch.float32 and dtype in (torch.bfloat16, torch.float16)):
        raise TypeError(f"{op}: dtype is {dtype} for x of {x.dtype}, {x.dtype} is right (or a half one for float32)")


def residual(op: str, value: Tensor, x: Tensor, outputs: int, dtype: torch.dtype, like: str) -> None:
    """What is added to the result (..., outputs) of x (..., C)."""
    floating(op, "residual", value)
    right = (*x.shape[:-1], outputs)
    if value.shape != right:
        raise ValueError(f"{op}: residual has shape {tuple(value.shape)}, {right} is right")
    same_or_float32(op, "residual", value, dtype, like)


def same_or_float32(op: str, name: str, value: Tensor, dtype: torch.dtype, like: str) -> None:
    """`value` has `dtype`, which is that of `like`, or float32 where that is a half one."""
    wide = torch.promote_types(dtype, torch.float32)
    if value.dtype not in (dtype, wide):
        right = f"{dtype} like {like}" + ("" if wide == dtype else f" or {wide}")
        raise TypeError(f"{op}: {name} has dtype {value.dtype}, {right} is right")


def unit_last_stride(x: Tensor) -> Tensor:
    """x itself where its last stride is 1, else a contiguous copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
