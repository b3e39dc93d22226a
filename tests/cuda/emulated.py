"""Calls into the emulated CUDA kernels with torch tensors: strides as they are, outputs filled with NaN."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

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
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    batch, heads, num_q, dim = q.shape
    margin = 64
    out_room = torch.full((batch * num_q * heads * dim + 2 * margin,), torch.nan, dtype=q.dtype)
    lse_room = torch.full((batch * heads * num_q + 2 * margin,), torch.nan)
    out = out_room[margin : out_room.numel() - margin].view(batch, num_q, heads, dim)
    lse = lse_room[margin : lse_room.numel() - margin].view(batch, heads, num_q)
    emulation.pooling_attention(
        q.dtype == torch.bfloat16,
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
    for room in (out_room, lse_room):
        assert room[:margin].isnan().all() and room[-margin:].isnan().all(), "written outside the output"
    return out, lse
