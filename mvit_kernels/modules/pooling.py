"""Pooling modules as SlowFast builds them, and what they compute as a :class:`~mvit_kernels.description.PoolNorm`."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..description import PoolNorm
from ..problem import Grid, Pool

PoolModule = nn.Conv3d | nn.AvgPool3d | nn.MaxPool3d


def make_pool(mode: str, channels: int, kernel: Grid, stride: Grid) -> PoolModule:
    """A pooling module with padding k // 2 per axis: a depthwise convolution without bias, an average or a maximum."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    if mode == "avg":
        return nn.AvgPool3d(kernel, stride, padding)
    if mode == "max":
        return nn.MaxPool3d(kernel, stride, padding)
    return nn.Conv3d(channels, channels, kernel, stride, padding, groups=channels, bias=False)


def describe_pool(module: PoolModule | None, norm: nn.Module | None) -> PoolNorm | None:
    """The pooling and norm of one branch with the parameters they hold now; None where the branch is not pooled."""
    if module is None:
        return None
    mode = "conv" if isinstance(module, nn.Conv3d) else "avg" if isinstance(module, nn.AvgPool3d) else "max"
    pool = Pool(mode, _grid(module.kernel_size), _grid(module.stride), _grid(module.padding))
    weight = module.weight if isinstance(module, nn.Conv3d) else None
    if norm is None:
        return PoolNorm(pool, weight)
    return PoolNorm(pool, weight, norm.weight, norm.bias, norm.eps)  # type: ignore[arg-type]


def _grid(sizes: Any) -> Grid:
    t, h, w = sizes
    return t, h, w
