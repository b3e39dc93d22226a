"""Defining an op in Python: schema, fake implementation, and a backward that recomputes through the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LIBRARY = torch.library.Library("mvit_kernels", "FRAGMENT")

Tensors = Sequence["Tensor | None"]


def recomputed_gradients(
    forward: Callable[..., Tensor | Sequence[Tensor]], inputs: Tensors, grad_outputs: Tensors
) -> list[Tensor | None]:
    """Gradients of `forward(*inputs)` for the inputs that require one, by running it again under autograd.

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
