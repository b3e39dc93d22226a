"""Launches of the pooling kernels: allocation, strides, geometry constants."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.pool_backward import tokens_like
from ..problem import Grid, Pool, tokens
from .blocks import ceil_div, channel_block, power_of_two, split
from .device import launch
from .kernels import pool as kernels
from .kernels import pool_backward as kernels_backward
from .launch import pool_rows, splits
from .run_attention import strides3, unit_of

MODES = {"conv": 0, "avg": 1, "max": 2}

REGISTERS = 168
"""Of a thread at most: at least three programs of four warps on a multiprocessor."""


def per_head(weight: Tensor | None, heads: int, dim: int) -> bool:
    """Whether each head has a filter of its own."""
    return weight is not None and weight.shape[0] == heads * dim and heads > 1


def by_tap(weight: Tensor) -> Tensor:
    """(C, 1, kt, kh, kw) -> (taps, C) float32: a tap's weights side by side, as the channels of a token are."""
    return weight.flatten(1).t().to(torch.float32, memory_format=torch.contiguous_format).contiguous()


def geometry(
    x: Tensor, pool: Pool, weight: Tensor | None, norm: tuple[Tensor | None, Tensor | None, float | None]
) -> tuple[int, ...]:
    """The constants of a branch: mode, norm (bits), own weights per head, kernel width."""
    norm_weight, norm_bias, eps = norm
    bits = (eps is not None) + 2 * (norm_weight is not None) + 4 * (norm_bias is not None)
    own = int(per_head(weight, x.shape[1], x.shape[3]))
    return (MODES[pool.mode], bits, own, pool.kernel[2])


def extents(thw: Grid, pool: Pool) -> tuple[int, ...]:
    """The numbers of a branch: grids in and out, kernel, stride, padding. A change of these compiles nothing again."""
    return (*thw, *pool.out_grid(thw)[1:], *pool.kernel[:2], *pool.stride, *pool.padding)


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
    rows, warps = pool_rows(parts, max(out.shape[2] for out in outs), 8192 // x[0].element_size())
    arguments: list[object] = []
    constants: list[tuple[int, ...]] = []
    for i, out in enumerate(outs):
        own_weight = weight[i]
        taps = out if own_weight is None else by_tap(own_weight)
        parameters = [taps, *(out if p is None else p for p in (norm_weight[i], norm_bias[i]))]
        arguments += [x[i], out, *parameters, norm_eps[i] or 0.0, *strides3(x[i], unit), out.shape[2]]
        arguments += extents(thw[i], pool[i])
        constants.append(geometry(x[i], pool[i], weight[i], (norm_weight[i], norm_bias[i], norm_eps[i])))
    missing = 3 - len(outs)
    arguments += arguments[:23] * missing
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
        registers=REGISTERS,
    )
    return outs


def backward(
    grad: Sequence[Tensor],
    x: Sequence[Tensor],
    thw: Sequence[Grid],
    has_cls: bool,
    pool: Sequence[Pool],
    weight: Sequence[Tensor | None],
    norm_weight: Sequence[Tensor | None],
    norm_bias: Sequence[Tensor | None],
    norm_eps: Sequence[float | None],
    needs: Sequence[bool],
) -> list[Tensor]:
    """The backward op: per branch the gradients of x, weight, norm weight and bias; no elements where not needed."""
    found: list[Tensor] = []
    branches = zip(grad, x, thw, pool, weight, norm_weight, norm_bias, norm_eps, strict=True)
    for i, (g, x_, thw_, pool_, w, norm_w, norm_b, eps) in enumerate(branches):
        found += _branch_backward(g, x_, thw_, has_cls, pool_, w, norm_w, norm_b, eps, needs[4 * i : 4 * i + 4])
    return found


def _branch_backward(
    grad: Tensor,
    x: Tensor,
    thw: Grid,
    has_cls: bool,
    pool: Pool,
    weight: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float | None,
    needs: Sequence[bool],
) -> list[Tensor]:
    batch, heads, num_in, dim = x.shape
    nothing = x.new_empty(0)
    inputs = (x, weight, norm_weight, norm_bias)
    wanted = [need and value is not None for need, value in zip(needs, inputs, strict=True)]
    if x.numel() == 0:
        return [
            value.new_zeros(value.shape) if value is not None and want else nothing
            for value, want in zip(inputs, wanted, strict=True)
        ]
    if grad.stride(-1) != 1:
        grad = grad.contiguous()
    num_out, cls, grid_out = grad.shape[2], int(has_cls), pool.out_grid(thw)
    constants = geometry(x, pool, weight, (norm_weight, norm_bias, norm_eps))
    taps = grad if weight is None else by_tap(weight)
    channels = taps.shape[-1]

    dy, winners = grad, nothing
    found_norm = [nothing, nothing]
    if norm_eps is not None or (pool.mode == "max" and wanted[0]):
        parts, unit = split(dim), unit_of(x, grad)
        rows, warps = pool_rows(parts, num_out, 4096 // x.element_size())
        programs = ceil_div(num_out, rows) * batch * heads
        if norm_eps is not None:
            dy = x.new_empty(batch, heads, num_out, dim)
        if pool.mode == "max":
            winners = x.new_empty(batch, heads, num_out, dim, dtype=torch.int16)
        needs_sums = wanted[2] or wanted[3]
        sums = x.new_empty(programs, 2, dim, dtype=torch.float32) if needs_sums else nothing
        launch(
            kernels_backward.pool_grad_outputs,
            programs,
            x,
            *(x, grad, taps, taps if norm_weight is None else norm_weight, dy, sums, winners, norm_eps or 0.0),
            *strides3(x, unit),
            *strides3(grad, unit),
            *(num_out, heads, *extents(thw, pool)),
            *(constants, unit, cls, int(needs_sums), dim, *parts, rows),
            warps=warps,
            stages=1,
            registers=REGISTERS,
        )
        if needs_sums:
            total = sums.sum(0, dtype=torch.float64)  # a long chain of roundings otherwise
            found_norm = [
                total[i].to(p.dtype) if p is not None and want else nothing
                for i, (p, want) in enumerate(zip((norm_weight, norm_bias), wanted[2:], strict=True))
            ]
    block = channel_block(dim)
    blocks = ceil_div(dim, block)

    grad_x = nothing
    if wanted[0]:
        grad_x = tokens_like(x)
        unit = unit_of(dy, grad_x)
        rows = max(1, min(4096 // x.element_size() // block, power_of_two(num_in)))
        launch(
            kernels_backward.pool_grad_inputs,
            ceil_div(num_in, rows) * blocks * batch * heads,
            x,
            *(dy, winners, taps, grad_x),
            *strides3(dy, unit),
            *strides3(grad_x, unit),
            *(num_in, num_out, heads, *thw[1:], *grid_out, *pool.kernel[:2], *pool.padding),
            *(constants, *pool.stride, unit, cls, dim, block, rows),
            warps=4,
            stages=1,
            registers=REGISTERS,
        )
    grad_weight = nothing
    if weight is not None and wanted[1]:
        outputs = num_out - cls
        lines = pool.kernel[0] * pool.kernel[1] * blocks * batch * heads
        rows = 2048 // block
        steps = ceil_div(outputs, rows)
        part_outputs = ceil_div(steps, splits(lines, steps)) * rows
        slabs = ceil_div(outputs, part_outputs)
        own, unit = per_head(weight, heads, dim), unit_of(x, dy)
        tap_sums = x.new_empty(
            slabs * batch * (1 if own else heads), pool.kernel[0] * pool.kernel[1] * pool.kernel[2], channels,
            dtype=torch.float32,
        )  # fmt: skip
        launch(
            kernels_backward.pool_grad_weight,
            lines * slabs,
            x,
            *(x, dy, tap_sums),
            *strides3(x, unit),
            *strides3(dy, unit),
            *(outputs, heads, part_outputs, *extents(thw, pool)),
            *(constants, unit, cls, dim, block, rows),
            warps=4,
            stages=1,
            registers=REGISTERS,
        )
        grad_weight = tap_sums.sum(0).t().reshape(weight.shape).to(weight.dtype)
        grad_weight = grad_weight.contiguous()
    return [grad_x, grad_weight, *found_norm]
