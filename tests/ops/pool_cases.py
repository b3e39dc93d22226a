"""Pooling problems for the tests: odd, prime, one-token and one-frame grids, every mode, kernel and stride kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mvit_kernels.problem import Grid, Pool
from tests.numerics import Guarded


def pool(mode: str, kernel: Grid, stride: Grid, padding: Grid | None = None) -> Pool:
    """`Pool` with the padding every library uses, kernel // 2, unless given."""
    return Pool(mode, kernel, stride, padding or (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2))


@dataclass(frozen=True)
class PoolCase:
    thw: Grid
    pool: Pool
    batch: int = 1
    heads: int = 2
    head_dim: int = 96
    has_cls: bool = True
    norm: bool = True
    affine: bool = True
    per_channel: bool = False

    def inputs(self, make: Guarded, dtype: torch.dtype) -> dict[str, Tensor | None]:
        n = int(self.has_cls) + self.thw[0] * self.thw[1] * self.thw[2]
        channels = self.head_dim * (self.heads if self.per_channel else 1)
        weight = make(channels, 1, *self.pool.kernel, dtype=dtype, scale=0.3) if self.pool.mode == "conv" else None
        affine = self.norm and self.affine
        return {
            "x": make(self.batch, self.heads, n, self.head_dim, dtype=dtype),
            "weight": weight,
            "norm_weight": make(self.head_dim, dtype=dtype) if affine else None,
            "norm_bias": make(self.head_dim, dtype=dtype) if affine else None,
        }

    @property
    def options(self) -> dict[str, object]:
        return {"has_cls": self.has_cls, "norm_eps": 1e-6 if self.norm else None}

    def __str__(self) -> str:
        cls = "cls" if self.has_cls else "nocls"
        return f"{'x'.join(map(str, self.thw))}-{self.pool}-H{self.heads}-D{self.head_dim}-{cls}".replace(" ", "_")


K3, S1 = (3, 3, 3), (1, 1, 1)

ODD_CASES = [
    PoolCase((2, 5, 7), pool("conv", K3, S1)),
    PoolCase((1, 1, 1), pool("conv", K3, S1)),
    PoolCase((1, 1, 1), pool("conv", (1, 1, 1), (1, 2, 2)), heads=1, has_cls=False),
    PoolCase((1, 13, 11), pool("conv", (1, 3, 3), (1, 2, 2)), head_dim=80),
    PoolCase((3, 17, 17), pool("conv", K3, (1, 8, 8)), head_dim=72),
    PoolCase((4, 14, 14), pool("conv", K3, (1, 2, 2)), batch=3, heads=4, head_dim=64),
    PoolCase((2, 9, 9), pool("conv", (1, 9, 9), (1, 8, 8)), head_dim=48),
    PoolCase((5, 7, 3), pool("conv", (3, 5, 5), (2, 4, 4)), head_dim=100),
    PoolCase((2, 6, 6), pool("conv", (2, 2, 2), (2, 2, 2), (0, 0, 0)), head_dim=8),
    PoolCase((3, 4, 5), pool("conv", K3, S1, (0, 0, 0)), head_dim=1),
    PoolCase((3, 4, 5), pool("conv", K3, (2, 1, 3), (2, 2, 2)), head_dim=5),
    PoolCase((2, 7, 7), pool("conv", K3, S1), heads=3, head_dim=20, per_channel=True),
    PoolCase((2, 7, 7), pool("conv", K3, S1), norm=False),
    PoolCase((2, 7, 7), pool("conv", K3, S1), affine=False),
    PoolCase((2, 23, 29), pool("conv", K3, S1), head_dim=128),
    PoolCase((2, 5, 7), pool("avg", K3, (1, 2, 2)), norm=False),
    PoolCase((1, 8, 8), pool("avg", (1, 2, 2), (1, 2, 2)), has_cls=False, head_dim=33),
    PoolCase((2, 5, 7), pool("max", K3, (1, 2, 2)), norm=False),
    PoolCase((1, 14, 14), pool("max", (1, 3, 3), (1, 2, 2)), heads=1, head_dim=384, norm=False),
    PoolCase((2, 6, 5), pool("max", (2, 2, 2), (2, 2, 2), (1, 1, 1)), has_cls=False),
    PoolCase((2, 5, 5), pool("conv", K3, S1), batch=0),
]
