"""Sub-modules of a host layer, checked for being exactly what a description can say.

A fused layer reads parameters and does not call these sub-modules. So a sub-module of another type, or with hooks that
a call would run, is not covered: the host's own forward stays in charge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ..description import Fused, Mlp, Norm, PoolNorm, Separate
from ..hooks import has_hooks, inactive_dropout
from ..problem import Grid, Pool
from .adapter import NotCovered, full_name

CONV, AVG, MAX = (nn.Conv3d, nn.Conv2d), (nn.AvgPool3d, nn.AvgPool2d), (nn.MaxPool3d, nn.MaxPool2d)
LAYER_NORMS = frozenset({"timm.layers.norm.LayerNorm"})
"""Subclasses of LayerNorm that compute the same."""
TWO_DIMENSIONAL = (nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d)


def plain(name: str, module: Any, *kinds: type[nn.Module]) -> None:
    """NotCovered unless `module` is exactly one of `kinds`, without hooks or an own forward."""
    if type(module) not in kinds:
        covered, found = [kind.__name__ for kind in kinds], type(module).__name__
        # A quantised Linear, for one, is called Linear too.
        raise NotCovered(
            f"{name} is {full_name(type(module)) if found in covered else found}, {' or '.join(covered)} is covered"
        )
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


def projections(m: Any) -> Fused | Separate:
    """The input projections under the names that all libraries give them: `qkv`, or `q`, `k` and `v`."""
    if isinstance(getattr(m, "qkv", None), nn.Identity) or not hasattr(m, "qkv"):
        return Separate(linear("q", m.q), linear("k", m.k), linear("v", m.v))
    return Fused(linear("qkv", m.qkv))


def in_turn(*modules: nn.Module) -> Callable[[Tensor], Tensor]:
    """Calls the modules one after the other, hooks included: the output projection and what follows it."""

    def out(x: Tensor) -> Tensor:
        for module in modules:
            x = module(x)
        return x

    return out


def pool(name: str, module: nn.Module | None, norm: nn.Module | None, channels: int) -> PoolNorm | None:
    """One pooling branch: depthwise convolution, average or maximum, in 3D, or in 2D as 3D with T = 1; then LayerNorm.

    Args:
        channels: what the convolution and the norm must be over.
    """
    if module is None:
        if norm is not None:
            raise NotCovered(f"{name} is None but has a norm")
        return None
    plain(name, module, *CONV, *AVG, *MAX)
    if isinstance(module, CONV):
        return depthwise_pool(name, module, norm, channels)
    if norm is not None:
        raise NotCovered(f"{name} is {type(module).__name__} with a norm, none is covered")
    if module.ceil_mode:
        raise NotCovered(f"{name} rounds its output size up, down is covered")
    if isinstance(module, AVG) and not (module.count_include_pad and module.divisor_override is None):
        raise NotCovered(f"{name} leaves the padding out of the mean, counting it is covered")
    if isinstance(module, MAX) and (_set(module.dilation) != {1} or module.return_indices):
        raise NotCovered(f"{name} has dilation or returns indices, neither is covered")
    host: Any = module
    mode, dims = "avg" if isinstance(module, AVG) else "max", 2 if isinstance(module, TWO_DIMENSIONAL) else 3
    kernel, stride = _three(host.kernel_size, 1, dims), _three(host.stride, 1, dims)
    return PoolNorm(Pool(mode, kernel, stride, _three(host.padding, 0, dims)))


def depthwise_pool(name: str, conv: nn.Module, norm: nn.Module | None, channels: int) -> PoolNorm:
    """Depthwise Conv3d or Conv2d over `channels`, then LayerNorm over them."""
    plain(name, conv, *CONV)
    assert isinstance(conv, CONV)
    if conv.bias is not None:
        raise NotCovered(f"{name} has a bias, none is covered")
    if (conv.in_channels, conv.out_channels, conv.groups) != (channels,) * 3:
        raise NotCovered(
            f"{name} has {conv.in_channels} -> {conv.out_channels} channels in {conv.groups} groups, "
            f"a depthwise convolution over {channels} is covered"
        )
    if _set(conv.dilation) != {1} or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise NotCovered(
            f"{name} has dilation {conv.dilation}, padding {conv.padding!r}, padding mode {conv.padding_mode!r}; "
            "dilation 1 and zero padding in numbers are covered"
        )
    dims = 2 if isinstance(conv, TWO_DIMENSIONAL) else 3
    kernel, stride = _three(conv.kernel_size, 1, dims), _three(conv.stride, 1, dims)
    geometry = Pool("conv", kernel, stride, _three(conv.padding, 0, dims))
    weight = conv.weight.unsqueeze(2) if dims == 2 else conv.weight
    if norm is None:
        return PoolNorm(geometry, weight)
    plain(f"{name} norm", norm, type(norm) if full_name(type(norm)) in LAYER_NORMS else nn.LayerNorm)
    assert isinstance(norm, nn.LayerNorm)
    if tuple(norm.normalized_shape) != (channels,):
        raise NotCovered(f"{name} norm is over {tuple(norm.normalized_shape)}, ({channels},) is covered")
    return PoolNorm(geometry, weight, norm.weight, norm.bias, norm.eps)


def pools(m: Any, channels: int) -> dict[str, Any]:
    """The branches under the names that most libraries give them: `pool_q`, `norm_q`, and so on for k and v."""
    return {
        f"pool_{x}": pool(f"pool_{x}", getattr(m, f"pool_{x}"), getattr(m, f"norm_{x}", None), channels) for x in "qkv"
    }


def _set(value: int | tuple[int, ...]) -> set[int]:
    return {value} if isinstance(value, int) else {*value}


def _three(value: int | tuple[int, ...], fill: int, dims: int) -> Grid:
    """A kernel, stride or padding of `dims` axes, or one number for all of them, on (T, H, W)."""
    sizes = (value,) * dims if isinstance(value, int) else tuple(value)
    t, h, w = (fill, *sizes) if dims == 2 else sizes
    return t, h, w


def _each(sizes: Any) -> tuple[int, int, int]:
    return (sizes, sizes, sizes) if isinstance(sizes, int) else _three(tuple(sizes), 1, 3)


def no_dropout(name: str, module: nn.Module | None) -> None:
    """NotCovered where a module would drop attention weights in training."""
    if module is not None and not isinstance(module, nn.Identity) and getattr(module, "p", 1.0) > 0:
        raise NotCovered(f"{name} drops attention weights in training, no dropout there is covered")
