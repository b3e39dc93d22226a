"""Decomposed relative position, MViTv2 (arXiv 2112.01526) equation 4: R_p(i),p(j) = R^h + R^w + R^t."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problem import Grid


def decomposed_rel_pos(
    q: Tensor,
    grid_q: Grid,
    grid_k: Grid,
    *,
    has_cls: bool,
    table_t: Tensor | None = None,
    table_h: Tensor | None = None,
    table_w: Tensor | None = None,
) -> Tensor:
    """Per query the inner products with the relative-position tables of its t, h and w coordinate.

        rows[i, :] = [<q_i, table_t[t_i, :]> | <q_i, table_h[h_i, :]> | <q_i, table_w[w_i, :]>]

    Args:
        q: (B, H, has_cls + tokens(grid_q), D), unscaled.
        table_t, table_h, table_w: gathered tables (Qt, Kt, D), (Qh, Kh, D), (Qw, Kw, D); an absent one gives zeros.
    Returns:
        (B, H, has_cls + tokens(grid_q), Kt + Kh + Kw), float32 (float64 for float64 q). The cls row is zero.
    """
    q = q.to(torch.promote_types(q.dtype, torch.float32))
    cls, grid = q[:, :, : int(has_cls)], q[:, :, int(has_cls) :].unflatten(2, grid_q)
    parts = [
        grid.new_zeros(*grid.shape[:-1], keys) if table is None else torch.einsum(formula, grid, table.to(q.dtype))
        for formula, table, keys in zip(
            ("bnthwd,tkd->bnthwk", "bnthwd,hkd->bnthwk", "bnthwd,wkd->bnthwk"),
            (table_t, table_h, table_w),
            grid_k,
            strict=True,
        )
    ]
    rows = torch.cat(parts, dim=-1).flatten(2, 4).to(q.dtype)  # autocast makes the products half precision
    return torch.cat((rows.new_zeros(*cls.shape[:-1], sum(grid_k)), rows), dim=2)
