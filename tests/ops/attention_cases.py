"""Attention problems for the tests: every head dim, key counts around the vector and tile widths, all options."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mvit_kernels.problem import Grid, tokens
from tests.numerics import Guarded


@dataclass(frozen=True)
class AttentionCase:
    grid_q: Grid
    grid_k: Grid
    batch: int = 1
    heads: int = 2
    head_dim: int = 96
    has_cls: bool = True
    rel_pos: bool = True
    residual: str = "no_cls"

    @property
    def num_q(self) -> int:
        return int(self.has_cls) + tokens(self.grid_q)

    @property
    def num_k(self) -> int:
        return int(self.has_cls) + tokens(self.grid_k)

    def inputs(self, make: Guarded, dtype: torch.dtype) -> dict[str, Tensor | None]:
        q, k, v = (
            make(self.batch, self.heads, n, self.head_dim, dtype=dtype) for n in (self.num_q, self.num_k, self.num_k)
        )
        rows_dtype = torch.promote_types(dtype, torch.float32)
        rows = None
        if self.rel_pos:
            rows = torch.randn(
                self.batch, self.heads, self.num_q, sum(self.grid_k), generator=make.generator, dtype=torch.float64
            ).to(make.device, rows_dtype)
        return {"q": q, "k": k, "v": v, "rel_pos": rows}

    @property
    def options(self) -> dict[str, object]:
        return {
            "grid_k": self.grid_k,
            "scale": self.head_dim**-0.5,
            "has_cls": self.has_cls,
            "residual": self.residual,
        }

    def __str__(self) -> str:
        cls = "cls" if self.has_cls else "nocls"
        rel = "relpos" if self.rel_pos else "norelpos"
        grids = "-".join("x".join(map(str, grid)) for grid in (self.grid_q, self.grid_k))
        return f"B{self.batch}-H{self.heads}-D{self.head_dim}-{grids}-{cls}-{rel}-{self.residual}"


ODD_CASES = [
    AttentionCase((2, 7, 7), (2, 7, 7)),
    AttentionCase((1, 1, 1), (1, 1, 1), has_cls=False),
    AttentionCase((1, 1, 1), (1, 1, 1), head_dim=1, heads=1),
    AttentionCase((1, 3, 5), (1, 13, 11), head_dim=80, residual="all"),
    AttentionCase((4, 14, 14), (4, 7, 7), heads=4, batch=2),
    AttentionCase((2, 4, 4), (8, 14, 14), heads=8),
    AttentionCase((2, 14, 14), (2, 7, 7), head_dim=72, has_cls=False, residual="all"),
    AttentionCase((1, 7, 7), (1, 31, 17), head_dim=64, residual="none"),
    AttentionCase((3, 5, 7), (1, 2, 2), head_dim=48, rel_pos=False),
    AttentionCase((3, 5, 7), (3, 3, 3), head_dim=100, rel_pos=False, residual="all"),
    AttentionCase((1, 5, 5), (1, 4, 4), head_dim=5, heads=3),
    AttentionCase((1, 6, 6), (1, 8, 8), head_dim=128, has_cls=False, residual="none", rel_pos=False),
    AttentionCase((1, 6, 6), (2, 23, 29), head_dim=8, residual="none"),
    AttentionCase((2, 3, 3), (2, 3, 3), batch=0),
]
