"""Projections that are computed again in the backward instead of being kept for it.

A projection from C channels costs 2*C FLOP for each number it gives, and keeping that number costs its bytes from the
forward to the backward. Where C is small, as in the first stage, where there are the most tokens, that is a few percent
of the time of a training step for the larger part of what a layer keeps: what goes into the projection is kept for the
weight's gradient anyway.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .projection import linear

WIDEST = 128
"""Channels up to which a projection is computed again."""


@dataclass(frozen=True)
class _Kept:
    """A tensor that autograd keeps, and the version it must still have when it is needed."""

    tensor: Tensor
    version: int

    @staticmethod
    def of(tensor: Tensor) -> _Kept:
        return _Kept(tensor, tensor._version)

    def get(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"a tensor of shape {tuple(self.tensor.shape)} is at version {self.tensor._version}, "
                f"{self.version} was expected"
            )
        return self.tensor


@dataclass(frozen=True)
class _View:
    """A view of a tensor that `make` computes again."""

    make: Callable[[], Tensor]
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def get(self) -> Tensor:
        return self.make().as_strided(self.size, self.stride, self.offset)


@dataclass
class Recomputed:
    """What one forward of a layer has made that need not be kept. Without `active` everything is kept."""

    active: bool
    _made: dict[int, tuple[StorageWeakRef, Callable[[], Tensor]]] = field(default_factory=dict)
    """By storage. The weak reference keeps no memory, but keeps another storage from getting the same number."""

    def projection(self, x: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor | None = None) -> Tensor:
        """The linear projection of x (B, N, C), or of the tokens of these indices; computed again in the backward."""
        if tokens is None:
            return self._made_by(linear, x, weight, bias, result=linear(x, weight, bias))
        chosen = self._made_by(torch.index_select, x, 1, tokens, result=x.index_select(1, tokens))
        with self.not_kept():
            result = linear(chosen, weight, bias)
        return self._made_by(_projection_of_tokens, x, weight, bias, tokens, result=result)

    def _made_by(self, function: Callable[..., Tensor], *inputs: Any, result: Tensor) -> Tensor:
        """`result`, which is `function(*inputs)` and can be made so again: not kept, nor are views of it."""
        if self.active:
            kept = [_Kept.of(x) if isinstance(x, Tensor) else x for x in inputs]
            context = contextvars.copy_context()  # the backend that was asked for

            def again() -> Tensor:
                values = [x.get() if isinstance(x, _Kept) else x for x in kept]
                with torch.no_grad(), torch.autocast(result_device, enabled=False):
                    return context.copy().run(function, *values)

            result_device = result.device.type
            storage = StorageWeakRef(result.untyped_storage())
            self._made[storage.cdata] = storage, again
        return result

    @contextmanager
    def not_kept(self) -> Iterator[None]:
        """Inside, autograd keeps how such results are made, and everything else as ever."""
        if not self.active:
            yield
            return

        def pack(tensor: Tensor) -> _Kept | _View:
            made = self._made.get(tensor.untyped_storage()._cdata)
            if made is None:
                return _Kept.of(tensor)
            return _View(made[1], tensor.shape, tensor.stride(), int(tensor.storage_offset()))

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.get()):
            yield


def recomputed(x: Tensor, parameters: Iterable[Tensor]) -> Recomputed:
    """For one forward of a layer that projects x by `parameters`; active where computing again pays and can be done.

    Not under a compiler, which has its own idea of what to keep; not where someone else decides what autograd keeps,
    activation checkpointing for one; not in transforms; not for tensors with rules of their own (DTensor).
    """
    active = (
        not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and x.shape[-1] <= WIDEST
        and all(type(t) in (Tensor, torch.nn.Parameter) for t in (x, *parameters))
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and not x.is_inference()
        and _nobody_else_decides()
    )
    return Recomputed(active)


def _projection_of_tokens(x: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor) -> Tensor:
    return linear(x.index_select(1, tokens), weight, bias)


def _nobody_else_decides() -> bool:
    hooks: Any = torch._C._autograd
    try:
        return hooks._saved_tensors_hooks_is_enabled() and hooks._top_saved_tensors_default_hooks(True) is None
    except AttributeError:  # a torch that can't tell
        return False
