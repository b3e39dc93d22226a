"""What an adapter is: the translation of one library's attention module or block into a description, and their list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .. import mhpa
from ..description import MHPA, Block


class NotCovered(Exception):
    """The module computes something that a description can't say; the message is the reason, for the report."""


SCOPES = ("attention", "block")
"""What `accelerate` may replace: attention layers alone, or whole transformer blocks too."""

Description = MHPA | Block
Describe = Callable[[Any], Description]
Run = Callable[..., Any]


@dataclass(frozen=True)
class Adapter:
    """How the layers of one host class are described and run.

    Attributes:
        host: the class's full name, "torchvision.models.video.mvit.MultiscaleAttention".
        describe: module -> description, made anew in every forward; raises :class:`NotCovered`.
        scope: "attention" or "block", what a host module is.
        run: description and the forward's arguments -> what the host's forward returns.
    """

    host: str
    describe: Describe
    run: Run
    scope: str


ADAPTERS: dict[str, Adapter] = {}

SIMILAR_NAMES = frozenset({"MultiScaleAttention", "MultiscaleAttention"})
"""Class names under which libraries keep MHPA layers, and others unlike it: worth a line in the report, no more."""


def run_with_tuple_grid(layer: MHPA, x: Tensor, thw: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
    """forward(x, thw) -> (x, grid as a tuple)."""
    out, grid = mhpa.forward(layer, x, thw)
    return out, tuple(grid)


def adapts(host: str, run: Run = run_with_tuple_grid, scope: str = "attention") -> Callable[[Describe], Describe]:
    """Register the decorated function as the description of `host`'s modules."""

    def register(describe: Describe) -> Describe:
        ADAPTERS[host] = Adapter(host, describe, run, scope)
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
    return adapter.describe(module)
