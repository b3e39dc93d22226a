"""Launches of the attention kernels: allocation, strides, block sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .blocks import ceil_div, divisor, key_tail, key_tiles, one_tail, split, stride_unit
from .device import device_family, launch, precision
from .kernels import attention, attention_backward
from .launch import matrix_kernel, splits

RESIDUAL = {"none": 0, "all": 1, "no_cls": 2}


def strides3(x: Tensor, unit: int) -> tuple[int, int, int]:
    """Strides of (B, H, N) in units; an extent of one has none."""
    b, h, n = (0 if size == 1 else stride // unit for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True))
    return b, h, n


def unit_of(*tensors: Tensor) -> int:
    """A factor of all strides, for 16-byte accesses where the pointers are aligned too."""
    if any(x.device.type != "meta" and x.data_ptr() % 16 for x in tensors):
        return 1
    return stride_unit(*(x.stride(dim) for x in tensors for dim in range(3) if x.shape[dim] > 1))


def rows_arguments(
    q: Tensor, rel_pos: Tensor | None, grid_k: Sequence[int]
) -> tuple[Tensor, list[int], list[int], tuple[int, int, int]]:
    """Rel-pos rows (q in their place where there are none), their strides, their numbers and their constants.

    The numbers are Kt + Kh + Kw, the key grid and its divisors; the constants are the unit of the strides, S0 and S1.
    """
    if rel_pos is None:
        return q, [0, 0, 0], [0] * 8, (1, 0, 0)
    entries = sum(grid_k)
    unit = stride_unit(entries, *(rel_pos.stride(dim) for dim in range(3) if rel_pos.shape[dim] > 1))
    divisors = [*divisor(grid_k[1] * grid_k[2]), *divisor(grid_k[2])]
    return rel_pos, list(strides3(rel_pos, unit)), [entries, *grid_k, *divisors], (unit, *split(entries))


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_pos: Tensor | None,
    grid_k: Sequence[int],
    scale: float,
    has_cls: bool,
    residual: str,
) -> tuple[Tensor, Tensor]:
    """The forward op."""
    batch, heads, num_q, dim = q.shape
    num_k = k.shape[2]
    out = q.new_empty(batch, num_q, heads, dim)
    lse = q.new_empty(batch, heads, num_q, dtype=torch.float32)
    if out.numel() == 0:
        return out, lse
    choice = matrix_kernel("forward", device_family(q.device), q.dtype, dim, num_k)
    unit = unit_of(q, k, v)
    rows, rows_strides, numbers, (rows_unit, *row_parts) = rows_arguments(q, rel_pos, grid_k)
    launch(
        attention.attention_forward,
        ceil_div(num_q, choice.block_m) * batch * heads,
        q,
        *(q, k, v, rows, out, lse),
        *strides3(q, unit),
        *strides3(k, unit),
        *strides3(v, unit),
        *rows_strides,
        *(heads, num_q, num_k, scale, *numbers),
        *(unit, rows_unit, dim, *split(dim), *row_parts),
        *(int(has_cls), RESIDUAL[residual]),
        *(choice.block_m, choice.block_n, key_tail(num_k, choice.block_n), precision(q.dtype)),
        warps=choice.warps,
        stages=choice.stages,
        registers=255,
    )
    return out, lse


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_pos: Tensor | None,
    lse: Tensor,
    grid_k: Sequence[int],
    scale: float,
    has_cls: bool,
    residual: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backward op: gradients of q, k, v and rel_pos, without elements where not needed."""
    batch, heads, num_q, dim = q.shape
    num_k = k.shape[2]
    nothing = q.new_empty(0)
    needs_q, needs_k, needs_v, needs_rows = *needs[:3], needs[3] and rel_pos is not None
    # From the op's (B, Nq, H, D) to the order of q; its strides may be anything, zero for an expanded one.
    grad_out = grad_out.transpose(1, 2)
    if grad_out.stride(-1) != 1:
        grad_out = grad_out.contiguous()
    if num_q * batch * heads == 0:
        found = [x.new_zeros(x.shape) if need else nothing for x, need in zip((q, k, v), needs, strict=False)]
        return found[0], found[1], found[2], q.new_empty(0) if rel_pos is None else rel_pos.new_zeros(rel_pos.shape)
    arch = device_family(q.device)
    unit = unit_of(q, k, v, grad_out)
    rows, rows_strides, numbers, (rows_unit, *row_parts) = rows_arguments(q, rel_pos, grid_k)
    strides = [n for x in (q, k, v, grad_out) for n in strides3(x, unit)] + rows_strides
    sizes = (heads, num_q, num_k, scale, *numbers)
    shape = (unit, rows_unit, dim, *split(dim), *row_parts, int(has_cls))

    grad_q = q.new_empty(q.shape) if needs_q else nothing
    grad_rows = rel_pos.new_empty(rel_pos.shape) if rel_pos is not None and needs_rows else nothing
    delta = torch.empty_like(lse, memory_format=torch.contiguous_format)
    lse = lse.contiguous()
    if needs_q or needs_rows or needs_k:
        choice = matrix_kernel("grad_q", arch, q.dtype, dim, num_k)
        launch(
            attention_backward.attention_grad_q,
            ceil_div(num_q, choice.block_m) * batch * heads,
            q,
            *(q, k, v, rows, grad_out, lse, lse if grad_lse is None else grad_lse.contiguous()),
            *(delta, grad_q, grad_rows),
            *strides,
            *sizes,
            *shape,
            *(RESIDUAL[residual], int(grad_lse is not None), int(needs_q), int(needs_rows)),
            *(choice.block_m, choice.block_n, one_tail(num_k, choice.block_n), precision(q.dtype)),
            warps=choice.warps,
            stages=choice.stages,
            registers=255,
        )
    grad_k, grad_v = nothing, nothing
    if needs_k or needs_v:
        choice = matrix_kernel("grad_kv", arch, q.dtype, dim, num_k)
        tail, tiles = key_tail(num_k, choice.block_n), key_tiles(num_k, choice.block_n)
        programs = tiles * batch * heads
        steps = ceil_div(num_q, choice.block_m)
        parts = splits(programs, steps)
        part_queries = ceil_div(steps, parts) * choice.block_m
        parts = ceil_div(num_q, part_queries)
        dtype = q.dtype if parts == 1 else torch.float32
        grad_k, grad_v = (
            q.new_empty(parts, batch, heads, num_k, dim, dtype=dtype) if need else nothing
            for need in (needs_k, needs_v)
        )
        launch(
            attention_backward.attention_grad_kv,
            programs * parts,
            q,
            *(q, k, v, rows, grad_out, lse, delta, grad_k, grad_v),
            *strides,
            *sizes,
            *(tiles, batch * heads, part_queries),
            *shape,
            *(int(needs_k), int(needs_v)),
            *(choice.block_m, choice.block_n, tail or choice.block_n, precision(q.dtype)),
            warps=choice.warps,
            stages=choice.stages,
            registers=255,
        )
        grad_k, grad_v = (x if x is nothing else x[0] if parts == 1 else x.sum(0).to(q.dtype) for x in (grad_k, grad_v))
    return grad_q, grad_k, grad_v, grad_rows
