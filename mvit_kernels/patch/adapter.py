"""What an adapter is: the translation of one library's attention module or block into a description, and their list."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..description import MHPA, Block


class NotCovered(Exception):
    """The module computes something that a description can't say; the message is the reason, for the report."""


SCOPES = ("attention", "block")
"""What `accelerate` may replace: attention layers alone, or whole transformer blocks too."""

Description = MHPA | Block
Describe = Callable[[Any], Any]
"""A module -> its :data:`Description`."""
Random = Callable[..., Tensor]
"""Random float64 numbers of a shape."""


@dataclass(frozen=True)
class Layout:
    """How a host's forward is called: its tokens, its grid and what it returns.

    Attributes:
        parameters: names of the forward's parameters after self, all of them; "**" for keyword arguments.
        run: (module, description, the forward's arguments) -> what the host's forward returns. May raise
            :class:`NotCovered` for arguments that ask for more, attention weights for one.
        example: (module, description, random numbers) -> small arguments for the proof (:mod:`.proof`); None
            where a block is made of parts that are proven themselves.
    """

    parameters: tuple[str, ...]
    run: Callable[..., Any]
    example: Callable[[Any, MHPA, Random], tuple[Any, ...]] | None = None


@dataclass(frozen=True)
class Adapter:
    """How the layers of one host class are described and run.

    Attributes:
        host: the class's full name, "torchvision.models.video.mvit.MultiscaleAttention".
        describe: module -> description, made anew in every forward; raises :class:`NotCovered`.
        layout: how the host's forward is called.
        scope: "attention" or "block", what a host module is.
    """

    host: str
    describe: Describe
    layout: Layout
    scope: str


ADAPTERS: dict[str, Adapter] = {}

SIMILAR_NAMES = frozenset({"MultiScaleAttention", "MultiscaleAttention", "MultiScaleAttentionPoolFirst"})
"""Class names under which libraries keep MHPA layers, and others unlike it: worth a line in the report, no more."""


def adapts(layout: Layout, *hosts: str, scope: str = "attention") -> Callable[[Describe], Describe]:
    """Register the decorated function as the description of the modules of the classes `hosts`."""

    def register(describe: Describe) -> Describe:
        for host in hosts:
            ADAPTERS[host] = Adapter(host, describe, layout, scope)
        return describe

    return register


def full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def find_adapter(cls: type[nn.Module]) -> tuple[Adapter, type[nn.Module]] | None:
    """The adapter of the nearest known host class that `cls` is or derives from, and that class."""
    for base in cls.__mro__:
        adapter = ADAPTERS.get(full_name(base))
        if adapter is not None:
            return adapter, base
    return None


def describe(module: nn.Module, adapter: Adapter, host: type[nn.Module]) -> Description:
    """The module's description; :class:`NotCovered` where its forward is not the host's or a part is not covered."""
    if type(module).forward is not host.forward:
        raise NotCovered("subclass overrides forward()")
    if "forward" in vars(module):
        raise NotCovered("forward was replaced on the instance")
    parameters = tuple(inspect.signature(host.forward).parameters.values())[1:]
    names = tuple("**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters)
    if names != adapter.layout.parameters:
        raise NotCovered(f"forward takes ({', '.join(names)}), ({', '.join(adapter.layout.parameters)}) is known")
    try:
        return adapter.describe(module)
    except AttributeError as error:
        raise NotCovered(f"another version of the class than the known ones: {error}") from error
