"""Defining an op in Python: schema, fake implementation, autograd.

The gradient of an op is an op of its own, `<op>_backward`, with a kernel in the compiled library. That one is not
differentiable again: where the caller asks for a graph of the backward (`create_graph=True`), the gradients come from
the reference instead, and PyTorch differentiates those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

NAMESPACES = ("mvit_kernels", "mvit_kernels_triton")
"""One op, two sets of kernels for the same devices: the compiled library's, and Triton's. The contract is common."""

LIBRARIES = {namespace: torch.library.Library(namespace, "FRAGMENT") for namespace in NAMESPACES}

LIBRARY = LIBRARIES["mvit_kernels"]
"""For what the compiled library alone has."""

Tensors = Sequence["Tensor | None"]
Registration = Callable[[str, torch.library.Library], None]

_registrations: list[Registration] = []


def _in_every_namespace(registration: Registration) -> None:
    _registrations.append(registration)
    for namespace, library in LIBRARIES.items():
        registration(namespace, library)


def add_namespace(namespace: str) -> None:
    """Define every op in one more namespace, for a library whose kernels are to stand beside those of the others."""
    library = LIBRARIES[namespace] = torch.library.Library(namespace, "FRAGMENT")
    for registration in _registrations:
        registration(namespace, library)


def define(schema: str) -> None:
    """Define an op in every namespace."""
    _in_every_namespace(lambda _, library: library.define(schema))


def register_fake(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate the function that gives `op` its shapes, in every namespace."""

    def register(fake: Callable[..., Any]) -> Callable[..., Any]:
        _in_every_namespace(
            lambda namespace, library: torch.library.register_fake(f"{namespace}::{op}", fake, lib=library)
        )
        return fake

    return register


def register_autograd(op: str, backward: Callable[..., Any], setup_context: Callable[[Any, Any, Any], None]) -> None:
    """Make `op` differentiable in every namespace; `backward` finds the ops of its own namespace in `ctx.ops`."""

    def register(namespace: str, library: torch.library.Library) -> None:
        def setup(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.ops = getattr(torch.ops, namespace)
            setup_context(ctx, inputs, output)

        torch.library.register_autograd(f"{namespace}::{op}", backward, setup_context=setup, lib=library)

    _in_every_namespace(register)


def recomputed_gradients(
    forward: Callable[..., Tensor | Sequence[Tensor]], inputs: Tensors, grad_outputs: Tensors
) -> list[Tensor | None]:
    """Gradients of `forward(*inputs)` for the inputs that require one, by running it again under autograd.

    For a backward that is to be differentiated itself; any other one takes the backward op.

    Each input goes in through an alias of its own, so a tensor passed twice gets its two gradients apart, and the
    result is differentiable again where the caller asked for that.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [None if x is None else x.view_as(x) for x in inputs]
        outputs = forward(*aliases)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    wanted = [x for x in aliases if x is not None and x.requires_grad]
    used = [
        (out, grad) for out, grad in zip(outputs, grad_outputs, strict=True) if grad is not None and out.requires_grad
    ]
    if not wanted or not used:
        return [None] * len(inputs)
    grads = iter(
        torch.autograd.grad(
            [out for out, _ in used],
            wanted,
            [grad for _, grad in used],
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    return [next(grads) if x is not None and x.requires_grad else None for x in aliases]


def present(gradients: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """What autograd takes: None for a gradient that was not asked for, which a backward op returns without elements."""
    return [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)]


def register_not_differentiable(op: str) -> None:
    """Make a second backward through the op `<op>_backward` an error that says what would be right."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    def backward(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(f"{op}_backward is not differentiable: differentiate {op} with create_graph=True")

    register_autograd(f"{op}_backward", backward, setup_context)
