"""Relative-position tables: which row belongs to a (query, key) pair, and resizing to another grid.

Tiny tensors, left to PyTorch so that autograd reaches the stored tables. The two index formulas differ only in where
they round to the default dtype, yet for grid pairs with a fractional ratio, (78, 10) for one, they pick different rows.
So each library's own formula is kept, rounding included.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

IndexFormula = Callable[[int, int, torch.device], Tensor]
"""(query count, key count, device) of one axis -> (queries, keys) int64 rows of the table."""


def slowfast_index(num_q: int, num_k: int, device: torch.device) -> Tensor:
    """(i*rq - j*rk) + (num_k-1)*rk: SlowFast slowfast/models/attention.py, and every library except torchvision."""
    ratio_q, ratio_k = max(num_k / num_q, 1.0), max(num_q / num_k, 1.0)
    i, j = torch.arange(num_q, device=device)[:, None], torch.arange(num_k, device=device)[None, :]
    return (i * ratio_q - j * ratio_k + (num_k - 1) * ratio_k).long()


def torchvision_index(num_q: int, num_k: int, device: torch.device) -> Tensor:
    """i*rq - (j + (1-num_k))*rk: torchvision/models/video/mvit.py."""
    ratio_q, ratio_k = max(num_k / num_q, 1.0), max(num_q / num_k, 1.0)
    i, j = torch.arange(num_q, device=device)[:, None], torch.arange(num_k, device=device)[None, :]
    return (i * ratio_q - (j + (1.0 - num_k)) * ratio_k).long()


def resize_table(table: Tensor, rows: int) -> Tensor:
    """(L, D) -> (rows, D) by linear interpolation, unchanged where L is already `rows`."""
    if table.shape[0] == rows:
        return table
    return F.interpolate(table.T[None], size=rows, mode="linear")[0].T


def float32_index(num_q: int, num_k: int, device: torch.device) -> Tensor:
    """:func:`slowfast_index` in float32 whatever the default dtype: timm/models/vision_transformer_sam.py."""
    ratio_q, ratio_k = max(num_k / num_q, 1.0), max(num_q / num_k, 1.0)
    i = torch.arange(num_q, device=device, dtype=torch.float32)[:, None]
    j = torch.arange(num_k, device=device, dtype=torch.float32)[None, :]
    return (i * ratio_q - j * ratio_k + (num_k - 1) * ratio_k).long()


def gather_table(table: Tensor, num_q: int, num_k: int, index: IndexFormula, resized: bool = True) -> Tensor:
    """(L, D) stored table -> (num_q, num_k, D), one row per (query, key) pair of one axis.

    Where `resized`, the table is interpolated to 2 * max(num_q, num_k) - 1 rows first.
    """
    if resized:
        table = resize_table(table, 2 * max(num_q, num_k) - 1)
    return table[index(num_q, num_k, table.device)]
