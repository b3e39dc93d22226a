"""Sub-modules of a host layer, checked for being exactly what a description can say.

A fused layer reads parameters and does not call these sub-modules. So a sub-module of another type, or with hooks that
a call would run, is not covered: the host's own forward stays in charge.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..description import Mlp, Norm, PoolNorm
from ..hooks import has_hooks, inactive_dropout
from ..problem import Pool
from .adapter import NotCovered


def plain(name: str, module: nn.Module | None, kind: type[nn.Module]) -> None:
    """NotCovered unless `module` is exactly a `kind`, without hooks or an own forward."""
    if type(module) is not kind:
        raise NotCovered(f"{name} is {type(module).__name__}, {kind.__name__} is covered")
    if "forward" in vars(module):
        raise NotCovered(f"{name} has its forward replaced")
    if has_hooks(module):
        raise NotCovered(f"{name} has hooks")


def linear(name: str, module: nn.Module) -> nn.Linear:
    plain(name, module, nn.Linear)
    assert isinstance(module, nn.Linear)
    return module


def is_plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    try:
        plain("", module, kind)
    except NotCovered:
        return False
    return True


def lone_linear(modules: Iterable[nn.Module]) -> nn.Linear | None:
    """The one Linear that `modules`, run one after the other, are now; None where they do more (hooks, dropout)."""
    first, *rest = modules
    if not is_plain(first, nn.Linear) or not all(inactive_dropout(module) for module in rest):
        return None
    assert isinstance(first, nn.Linear)
    return first


def layer_norm(name: str, module: nn.Module) -> Norm:
    """LayerNorm over the last dim."""
    plain(name, module, nn.LayerNorm)
    assert isinstance(module, nn.LayerNorm)
    if len(module.normalized_shape) != 1:
        raise NotCovered(f"{name} is over {tuple(module.normalized_shape)}, one dim is covered")
    return Norm(module.weight, module.bias, module.eps)


def gelu_mlp(name: str, fc1: nn.Module, activation: nn.Module, fc2: nn.Module) -> Mlp:
    plain(f"{name} activation", activation, nn.GELU)
    assert isinstance(activation, nn.GELU)
    if activation.approximate != "none":
        raise NotCovered(f"{name} has GELU approximated by {activation.approximate!r}, the exact one is covered")
    return Mlp(linear(f"{name} first layer", fc1), linear(f"{name} second layer", fc2))


def max_pool(name: str, module: nn.Module) -> Pool:
    plain(name, module, nn.MaxPool3d)
    assert isinstance(module, nn.MaxPool3d)
    if module.return_indices or module.ceil_mode or _each(module.dilation) != (1, 1, 1):
        raise NotCovered(f"{name} has dilation, indices or ceil mode, none is covered")
    return Pool("max", _each(module.kernel_size), _each(module.stride), _each(module.padding))


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


def _each(sizes: Any) -> tuple[int, int, int]:
    return (sizes, sizes, sizes) if isinstance(sizes, int) else _three(tuple(sizes))
