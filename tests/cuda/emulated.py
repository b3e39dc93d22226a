"""Calls into the emulated CUDA kernels with torch tensors: strides as they are, outputs filled with NaN."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from mvit_kernels.problem import Grid, Pool, tokens
from tests.numerics import Guarded


class Aligned(Guarded):
    """Guarded inputs whose rows begin at multiples of 16 bytes, as the CUDA kernels need them."""

    margin = 64


def pooling_attention(
    emulation: ModuleType,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rel_pos: Tensor | None,
    grid_k: tuple[int, int, int],
    scale: float,
    has_cls: bool,
    residual: str,
    tf32: bool = False,
    multiprocessors: int = 1,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """With more multiprocessors than the problem has blocks, keys are split among blocks."""
    batch, heads, num_q, dim = q.shape
    out_room, out = _output((batch, num_q, heads, dim), q.dtype)
    lse_room, lse = _output((batch, heads, num_q), torch.float32)
    emulation.pooling_attention(
        *(_name(q), tf32, multiprocessors),
        (batch, heads, num_q, k.shape[2], dim),
        *(x for t in (q, k, v) for x in (t.data_ptr(), t.stride()[:3])),
        *((0, (0, 0, 0)) if rel_pos is None else (rel_pos.data_ptr(), rel_pos.stride()[:3])),
        (0, 0, 0) if rel_pos is None else grid_k,
        scale,
        has_cls,
        residual,
        out.data_ptr(),
        lse.data_ptr(),
        seed,
    )
    _assert_margins(out_room)
    _assert_margins(lse_room)
    return out, lse


def pooling_attention_backward(
    emulation: ModuleType,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rel_pos: Tensor | None,
    grid_k: tuple[int, int, int],
    scale: float,
    has_cls: bool,
    residual: str,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor | None = None,
    needs: tuple[bool, bool, bool, bool] = (True, True, True, True),
    tf32: bool = False,
    multiprocessors: int = 1,
    seed: int = 0,
) -> list[Tensor | None]:
    """Gradients of q, k, v and rel_pos; None where not needed. grad_out is (B, Nq, H, D).

    With more multiprocessors than the problem has blocks, that of q may split the keys among blocks.
    """
    batch, heads, num_q, dim = q.shape
    shapes = (q, k, v, rel_pos)
    made = [
        _output(x.shape, x.dtype) if need and x is not None else None for x, need in zip(shapes, needs, strict=True)
    ]
    strides = grad_out.transpose(1, 2).stride()[:3]
    emulation.pooling_attention_backward(
        *(_name(q), tf32, multiprocessors, (batch, heads, num_q, k.shape[2], dim)),
        [(0, (0, 0, 0)) if x is None else (x.data_ptr(), x.stride()[:3]) for x in shapes],
        *((0, 0, 0) if rel_pos is None else grid_k, scale, has_cls, residual),
        *(lse.data_ptr(), (grad_out.data_ptr(), strides), 0 if grad_lse is None else grad_lse.data_ptr()),
        [0 if one is None else one[1].data_ptr() for one in made],
        seed,
    )
    for one in made:
        if one is not None:
            _assert_margins(one[0])
    return [None if one is None else one[1] for one in made]


def pooled_query_attention(
    emulation: ModuleType,
    x: Tensor,
    thw: Grid,
    pool: Pool,
    k: Tensor,
    v: Tensor,
    *,
    weight: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float | None,
    tables: Sequence[Tensor | None],
    grid_k: Grid,
    scale: float,
    has_cls: bool,
    residual: str,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    batch, heads, _, dim = x.shape
    num_q = int(has_cls) + tokens(pool.out_grid(thw))
    out_room, out = _output((batch, num_q, heads, dim), x.dtype)
    lse_room, lse = _output((batch, heads, num_q), torch.float32)
    emulation.pooled_query_attention(
        *(_name(x), (batch, heads, k.shape[2], dim)),
        _branch(x, None, thw, pool, weight, norm_weight, norm_bias, norm_eps),
        *(y for t in (k, v) for y in (t.data_ptr(), t.stride()[:3])),
        *(grid_k, [_parameter(table) for table in tables], scale, has_cls, residual),
        *(out.data_ptr(), lse.data_ptr(), seed),
    )
    _assert_margins(out_room)
    _assert_margins(lse_room)
    return out, lse


def qkv_pool3d_norm(
    emulation: ModuleType,
    x: Sequence[Tensor],
    thw: Sequence[Grid],
    pool: Sequence[Pool],
    *,
    has_cls: bool,
    weight: Sequence[Tensor | None],
    norm_weight: Sequence[Tensor | None],
    norm_bias: Sequence[Tensor | None],
    norm_eps: Sequence[float | None],
    seed: int = 0,
) -> list[Tensor]:
    batch, heads, _, dim = x[0].shape
    rooms, outs, branches = [], [], []
    for i, branch in enumerate(pool):
        shape = (batch, heads, int(has_cls) + tokens(branch.out_grid(thw[i])), dim)
        room, out = _output(shape, x[i].dtype)
        rooms.append(room)
        outs.append(out)
        branches.append(_branch(x[i], out, thw[i], branch, weight[i], norm_weight[i], norm_bias[i], norm_eps[i]))
    emulation.pool3d_norm(_name(x[0]), batch, heads, dim, has_cls, branches, seed)
    for room in rooms:
        _assert_margins(room)
    return outs


def decomposed_rel_pos(
    emulation: ModuleType,
    q: Tensor,
    grid_q: Grid,
    grid_k: Grid,
    *,
    has_cls: bool,
    tables: Sequence[Tensor | None],
    seed: int = 0,
) -> Tensor:
    batch, heads, num_q, dim = q.shape
    room, rows = _output((batch, heads, num_q, sum(grid_k)), torch.float32)
    emulation.decomposed_rel_pos(
        *(_name(q), batch, heads, dim, has_cls, grid_q, grid_k, q.data_ptr(), q.stride()[:3]),
        [_parameter(table) for table in tables],
        rows.data_ptr(),
        seed,
    )
    _assert_margins(room)
    return rows


def _branch(
    x: Tensor,
    out: Tensor | None,
    thw: Grid,
    pool: Pool,
    weight: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float | None,
) -> dict[str, object]:
    return {
        "x": x.data_ptr(),
        "strides": x.stride()[:3],
        "out": 0 if out is None else out.data_ptr(),
        "thw": thw,
        "kernel": pool.kernel,
        "stride": pool.stride,
        "padding": pool.padding,
        "mode": pool.mode,
        "weight": _parameter(weight),
        "per_head_weight": weight is not None and weight.shape[0] != x.shape[3],
        "norm_weight": _parameter(norm_weight),
        "norm_bias": _parameter(norm_bias),
        "norm_eps": norm_eps,
    }


def _output(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """NaN with a margin, and the tensor inside it."""
    numel = torch.Size(shape).numel()
    room = torch.full((numel + 2 * Aligned.margin,), torch.nan, dtype=dtype)
    return room, room[Aligned.margin : Aligned.margin + numel].view(shape)


def _assert_margins(room: Tensor) -> None:
    margin = Aligned.margin
    assert room[:margin].isnan().all() and room[-margin:].isnan().all(), "written outside the output"


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _parameter(x: Tensor | None) -> tuple[int, str]:
    return (0, "float32") if x is None else (x.data_ptr(), _name(x))
