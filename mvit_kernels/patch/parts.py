"""Sub-modules of a host layer, checked for being exactly what a description can say.

A fused layer reads parameters and does not call these sub-modules. So a sub-module of another type, or with hooks that
a call would run, is not covered: the host's own forward stays in charge.
"""

from __future__ import annotations

from torch import nn

from ..description import PoolNorm
from ..problem import Pool
from .adapter import NotCovered

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def plain(name: str, module: nn.Module | None, kind: type[nn.Module]) -> None:
    """NotCovered unless `module` is exactly a `kind`, without hooks or an own forward."""
    if type(module) is not kind:
        raise NotCovered(f"{name} is {type(module).__name__}, {kind.__name__} is covered")
    if "forward" in vars(module):
        raise NotCovered(f"{name} has its forward replaced")
    if any(getattr(module, hooks, None) for hooks in HOOKS):
        raise NotCovered(f"{name} has hooks")


def linear(name: str, module: nn.Module) -> nn.Linear:
    plain(name, module, nn.Linear)
    assert isinstance(module, nn.Linear)
    return module


def depthwise_pool(name: str, conv: nn.Module, norm: nn.Module | None, channels: int) -> PoolNorm:
    """Depthwise Conv3d over `channels`, then LayerNorm over them."""
    plain(name, conv, nn.Conv3d)
    assert isinstance(conv, nn.Conv3d)
    if conv.bias is not None:
        raise NotCovered(f"{name} has a bias, none is covered")
    if (conv.in_channels, conv.out_channels, conv.groups) != (channels,) * 3:
        raise NotCovered(
            f"{name} has {conv.in_channels} -> {conv.out_channels} channels in {conv.groups} groups, "
            f"a depthwise convolution over {channels} is covered"
        )
    if conv.dilation != (1, 1, 1) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise NotCovered(
            f"{name} has dilation {conv.dilation}, padding {conv.padding!r}, padding mode {conv.padding_mode!r}; "
            "dilation 1 and zero padding in numbers are covered"
        )
    pool = Pool("conv", _three(conv.kernel_size), _three(conv.stride), _three(conv.padding))
    if norm is None:
        return PoolNorm(pool, conv.weight)
    plain(f"{name} norm", norm, nn.LayerNorm)
    assert isinstance(norm, nn.LayerNorm)
    if tuple(norm.normalized_shape) != (channels,):
        raise NotCovered(f"{name} norm is over {tuple(norm.normalized_shape)}, ({channels},) is covered")
    return PoolNorm(pool, conv.weight, norm.weight, norm.bias, norm.eps)


def _three(sizes: tuple[int, ...]) -> tuple[int, int, int]:
    t, h, w = sizes
    return t, h, w
