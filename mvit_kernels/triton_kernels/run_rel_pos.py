"""Launches of the relative-position kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .blocks import ceil_div, power_of_two, split, stride_unit
from .device import launch, precision
from .kernels import rel_pos as kernels
from .launch import splits
from .run_attention import strides3, unit_of

Tables = tuple["Tensor | None", "Tensor | None", "Tensor | None"]


def _prepare(tables: Tables, q: Tensor) -> tuple[list[Tensor], int]:
    """The tables contiguous and of one dtype, q in the place of an absent one; and which are there, as bits."""
    dtypes = {table.dtype for table in tables if table is not None}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    if dtype == torch.float64 or (dtype != q.dtype and dtype != torch.float32):
        dtype = torch.float32
    present = [q if table is None else table.to(dtype).contiguous() for table in tables]
    first = next((table for table, given in zip(present, tables, strict=True) if given is not None), q)
    found = [first if given is None else table for table, given in zip(present, tables, strict=True)]
    return found, sum((table is not None) << i for i, table in enumerate(tables))


def _pairs(batch: int, heads: int) -> int:
    return max(16, min(64, power_of_two(batch * heads)))


def forward(
    q: Tensor,
    grid_q: Sequence[int],
    grid_k: Sequence[int],
    has_cls: bool,
    table_t: Tensor | None,
    table_h: Tensor | None,
    table_w: Tensor | None,
) -> Tensor:
    """The forward op."""
    batch, heads, num_q, dim = q.shape
    entries = sum(grid_k)
    rows = q.new_empty(batch, heads, num_q, entries, dtype=torch.float32)
    if rows.numel() == 0:
        return rows
    tables, has = _prepare((table_t, table_h, table_w), q)
    block, unit = _pairs(batch, heads), unit_of(q)
    launch(
        kernels.rel_pos_forward,
        ceil_div(batch * heads, block) * num_q,
        q,
        *(q, *tables, rows),
        *strides3(q, unit),
        *(heads, batch * heads, num_q, entries, *grid_q[1:], *grid_k),
        *(unit, stride_unit(entries), dim, *split(dim), *split(entries)),
        *(int(has_cls), has, block, precision(q.dtype)),
        warps=4,
        stages=1,
        registers=255,
    )
    return rows


def backward(
    grad: Tensor,
    q: Tensor,
    grid_q: Sequence[int],
    grid_k: Sequence[int],
    has_cls: bool,
    table_t: Tensor | None,
    table_h: Tensor | None,
    table_w: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backward op: gradients of q and the tables, without elements where not needed."""
    batch, heads, num_q, dim = q.shape
    tables = (table_t, table_h, table_w)
    nothing = q.new_empty(0)
    if grad.stride(-1) != 1:
        grad = grad.contiguous()
    grad_q = nothing
    if needs[0]:
        grad_q = q.new_empty(q.shape)
    if needs[0] and grad_q.numel():
        prepared, has = _prepare(tables, q)
        entries, block, rows_unit = sum(grid_k), _pairs(batch, heads), unit_of(grad)
        launch(
            kernels.rel_pos_grad_q,
            ceil_div(batch * heads, block) * num_q,
            q,
            *(grad, *prepared, grad_q),
            *strides3(grad, rows_unit),
            *(heads, batch * heads, num_q, entries, *grid_q[1:], *grid_k),
            *(rows_unit, dim, *split(dim), *split(entries)),
            *(int(has_cls), has, block, precision(q.dtype)),
            warps=4,
            stages=1,
            registers=255,
        )
    found = [
        _grad_table(grad, q, grid_q, grid_k, has_cls, axis, table) if table is not None and needs[1 + axis] else nothing
        for axis, table in enumerate(tables)
    ]
    return grad_q, found[0], found[1], found[2]


def _grad_table(
    grad: Tensor, q: Tensor, grid_q: Sequence[int], grid_k: Sequence[int], has_cls: bool, axis: int, table: Tensor
) -> Tensor:
    batch, heads, _, dim = q.shape
    if batch * heads == 0:
        return torch.zeros_like(table, memory_format=torch.contiguous_format)
    extent, keys = grid_q[axis], grid_k[axis]
    others = grid_q[0] * grid_q[1] * grid_q[2] // extent
    inner = (grid_q[1] * grid_q[2], grid_q[2], 1)[axis]
    # In float32 the sums stay in registers that tensor cores would not need.
    queries, block, unit = batch * heads * others, 16 if q.dtype == torch.float32 else 32, unit_of(q)
    steps = ceil_div(queries, block)
    part = ceil_div(steps, splits(extent, steps)) * block
    parts = ceil_div(queries, part)
    sums = q.new_empty(parts, extent, keys, dim, dtype=torch.float32)
    launch(
        kernels.rel_pos_grad_table,
        extent * parts,
        q,
        *(q, grad, sums),
        *strides3(q, unit),
        *strides3(grad, 1),
        *(heads, queries, part, sum(grid_k[:axis]), keys, extent, inner, others),
        *(unit, dim, *split(dim), max(16, power_of_two(keys)), int(has_cls), block, precision(q.dtype)),
        warps=4,
        stages=1,
        registers=255,
    )
    return sums.sum(0).to(table.dtype)
