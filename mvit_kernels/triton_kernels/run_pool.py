"""Launches of the pooling kernels: allocation, strides, geometry constants."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..problem import Grid, Pool, tokens
from .blocks import ceil_div, split
from .device import launch
from .kernels import pool as kernels
from .launch import pool_rows
from .run_attention import strides3, unit_of

MODES = {"conv": 0, "avg": 1, "max": 2}


def per_head(weight: Tensor | None, heads: int, dim: int) -> bool:
    """Whether each head has a filter of its own."""
    return weight is not None and weight.shape[0] == heads * dim and heads > 1


def by_tap(weight: Tensor) -> Tensor:
    """(C, 1, kt, kh, kw) -> (taps, C) float32: a tap's weights side by side, as the channels of a token are."""
    return weight.flatten(1).t().to(torch.float32, memory_format=torch.contiguous_format).contiguous()


def geometry(
    x: Tensor, thw: Grid, pool: Pool, weight: Tensor | None, norm: tuple[Tensor | None, Tensor | None, float | None]
) -> tuple[int, ...]:
    """The constants of a branch, in the order that `pool_forward` reads them."""
    norm_weight, norm_bias, eps = norm
    bits = (eps is not None) + 2 * (norm_weight is not None) + 4 * (norm_bias is not None)
    _, height, width = pool.out_grid(thw)
    own = int(per_head(weight, x.shape[1], x.shape[3]))
    return (MODES[pool.mode], bits, own, *thw, height, width, *pool.kernel, *pool.stride, *pool.padding)


def forward(
    x: Sequence[Tensor],
    thw: Sequence[Grid],
    has_cls: bool,
    pool: Sequence[Pool],
    weight: Sequence[Tensor | None],
    norm_weight: Sequence[Tensor | None],
    norm_bias: Sequence[Tensor | None],
    norm_eps: Sequence[float | None],
) -> list[Tensor]:
    """All branches in one launch; heads and head dim are common to them, else one launch each."""
    if any(x_.shape[1] != x[0].shape[1] or x_.shape[3] != x[0].shape[3] for x_ in x):
        branches = zip(x, thw, pool, weight, norm_weight, norm_bias, norm_eps, strict=True)
        return [
            forward([x_], [thw_], has_cls, [p], [w], [nw], [nb], [eps])[0] for x_, thw_, p, w, nw, nb, eps in branches
        ]
    batch, heads, _, dim = x[0].shape
    outs = [
        x_.new_empty(batch, heads, int(has_cls) + tokens(p.out_grid(thw_)), dim)
        for x_, thw_, p in zip(x, thw, pool, strict=True)
    ]
    if outs[0].numel() == 0:
        return outs
    unit = unit_of(*x)
    parts = split(dim)
    rows, warps = pool_rows(parts, max(out.shape[2] for out in outs))
    arguments: list[object] = []
    constants: list[tuple[int, ...]] = []
    for i, out in enumerate(outs):
        own_weight = weight[i]
        taps = out if own_weight is None else by_tap(own_weight)
        channels = taps.shape[-1]
        parameters = [taps, *(out if p is None else p for p in (norm_weight[i], norm_bias[i]))]
        arguments += [x[i], out, *parameters, norm_eps[i] or 0.0, *strides3(x[i], unit), out.shape[2], channels]
        constants.append(geometry(x[i], thw[i], pool[i], weight[i], (norm_weight[i], norm_bias[i], norm_eps[i])))
    missing = 3 - len(outs)
    arguments += arguments[:11] * missing
    constants += [()] * missing
    launch(
        kernels.pool_forward,
        sum(ceil_div(out.shape[2], rows) for out in outs) * batch * heads,
        x[0],
        *arguments,
        heads,
        *constants,
        *(unit, int(has_cls), dim, *parts, rows),
        warps=warps,
        stages=1,
    )
    return outs
