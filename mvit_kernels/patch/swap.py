"""Making a module run its description, by giving it a class that differs from its own in `forward` alone.

The module object stays: its parameters, buffers, sub-modules, hooks, training flag and state_dict are not touched, and
`isinstance` holds. Copies and pickles carry the host class, from which the accelerated one is made again on loading.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch.fx
from torch import nn

from ..tracing import constant_in_graphs
from .adapter import Adapter, NotCovered, find_adapter


def is_accelerated(module: nn.Module) -> bool:
    return hasattr(type(module), "_mvit_kernels_host")


def host_class(module: nn.Module) -> type[nn.Module]:
    """The class the module had before, and gets back from :func:`swap_out`."""
    return _host_of(type(module))


def _host_of(cls: type[nn.Module]) -> type[nn.Module]:
    """`cls` without the accelerated class: itself where it has none, and the class around it where that came later.

    FSDP's fully_shard and parametrizations give a module a class derived from the one it has.
    """
    host: type[nn.Module] | None = vars(cls).get("_mvit_kernels_host")
    if host is not None or not hasattr(cls, "_mvit_kernels_host"):
        return host or cls
    members = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls.__name__, tuple(map(_host_of, cls.__bases__)), members)


def swap_in(module: nn.Module) -> None:
    module.__class__ = accelerated_class(type(module))


def swap_out(module: nn.Module) -> None:
    module.__class__ = host_class(module)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}


def accelerated_class(host: type[nn.Module]) -> type[nn.Module]:
    """A subclass of `host` whose forward runs the module's description; always the same one for a host."""
    if host not in _CLASSES:
        _CLASSES[host] = _make_class(host)
    return _CLASSES[host]


def _make_class(host: type[nn.Module]) -> type[nn.Module]:
    found = find_adapter(host)
    assert found is not None, f"{host} has no adapter"
    adapter: Adapter = found[0]

    @functools.wraps(host.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], torch.fx.Proxy):  # fx keeps the layer as one call
            tracer: Any = args[0].tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)
        try:
            return adapter.layout.run(self, adapter.describe(self), *args, **kwargs)
        except NotCovered as reason:
            _warn(host.__name__, str(reason))
            return host.forward(self, *args, **kwargs)

    def extra_repr(self: nn.Module) -> str:
        return ", ".join(part for part in (host.extra_repr(self), "forward by mvit_kernels") if part)

    def __reduce_ex__(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        reduced = host.__reduce_ex__(self, max(int(protocol), 2))
        assert isinstance(reduced, tuple)
        return (_new, (host,), *reduced[2:])

    members = {
        "forward": forward,
        "extra_repr": extra_repr,
        "__reduce_ex__": __reduce_ex__,
        "__module__": __name__,
        "__doc__": host.__doc__,
        "_mvit_kernels_host": host,
    }
    return type(f"Accelerated{host.__name__}", (host,), members)


def _new(host: type[nn.Module]) -> nn.Module:
    cls = accelerated_class(host)
    return cls.__new__(cls)


_WARNED: set[tuple[str, str]] = set()


@constant_in_graphs
def _warn(name: str, reason: str) -> None:
    """Once per reason: a layer has changed since it was accelerated, or is asked for what a fused one does not have."""
    if (name, reason) not in _WARNED:
        _WARNED.add((name, reason))
        warnings.warn(f"mvit_kernels: {name} runs its own forward: {reason}", stacklevel=4)
