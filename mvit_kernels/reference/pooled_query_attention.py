"""Attention whose queries are pooled with it: the ops that a layer runs one after the other, as one."""

from __future__ import annotations

from torch import Tensor

from ..problem import Grid, Pool
from .decomposed_rel_pos import decomposed_rel_pos
from .pool3d_norm import pool3d_norm
from .pooling_attention import pooling_attention


def pooled_query_attention(
    x: Tensor,
    thw: Grid,
    pool: Pool,
    k: Tensor,
    v: Tensor,
    *,
    has_cls: bool,
    weight: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_eps: float | None = None,
    table_t: Tensor | None = None,
    table_h: Tensor | None = None,
    table_w: Tensor | None = None,
    grid_k: Grid | None = None,
    scale: float,
    residual: str = "none",
) -> Tensor:
    """q = P(x), its rows of relative position, and the attention of q, k and v.

    Args:
        x: (B, H, has_cls + tokens(thw), D), the queries before their pooling.
        pool, weight, norm_weight, norm_bias, norm_eps: as in :func:`pool3d_norm`.
        k, v: (B, H, Nk, D), pooled.
        table_t, table_h, table_w: as in :func:`decomposed_rel_pos`; no table at all: no relative position.
        grid_k, scale, residual: as in :func:`pooling_attention`.
    Returns:
        (B, Nq, H, D), dtype of x.
    """
    q = pool3d_norm(
        x,
        thw,
        pool,
        has_cls=has_cls,
        weight=weight,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        norm_eps=norm_eps,
    )
    rows = None
    if not (table_t is None and table_h is None and table_w is None):
        assert grid_k is not None
        rows = decomposed_rel_pos(
            q, pool.out_grid(thw), grid_k, has_cls=has_cls, table_t=table_t, table_h=table_h, table_w=table_w
        )
    out, _ = pooling_attention(q, k, v, rel_pos=rows, grid_k=grid_k, scale=scale, has_cls=has_cls, residual=residual)
    return out
