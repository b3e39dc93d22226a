"""The backward op of `pool3d_norm` and `qkv_pool3d_norm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..op_arguments import flat, stored, stored_eps
from ..problem import Grid, Pool
from .contract import define, present, register_fake, register_not_differentiable

define(
    "qkv_pool3d_norm_backward(Tensor[] grad, Tensor[] x, SymInt[] thw, bool has_cls, str[] mode, int[] kernel, "
    "int[] stride, int[] padding, Tensor[] weight, Tensor[] norm_weight, Tensor[] norm_bias, float[] norm_eps, "
    "bool[] needs) -> Tensor[]"
)


@register_fake("qkv_pool3d_norm_backward")
def _fake_backward(
    grad: Sequence[Tensor],
    x: Sequence[Tensor],
    thw: Sequence[int],
    has_cls: bool,
    mode: Sequence[str],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    weight: Sequence[Tensor],
    norm_weight: Sequence[Tensor],
    norm_bias: Sequence[Tensor],
    norm_eps: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    """Per branch the gradients of x, weight, norm_weight and norm_bias; no elements where not needed.

    That of x is laid out [batch][token][head] where x is, as slices of a projection are; all else is contiguous.
    """
    inputs = [tensor for branch in zip(x, weight, norm_weight, norm_bias, strict=True) for tensor in branch]
    return [
        (tokens_like(tensor) if i % 4 == 0 else tensor.new_empty(tensor.shape))
        if needed and (i % 4 == 0 or tensor.numel())
        else x[i // 4].new_empty(0)
        for i, (tensor, needed) in enumerate(zip(inputs, needs, strict=True))
    ]


def tokens_like(x: Tensor) -> Tensor:
    """Uninitialised, in the shape of x: laid out [batch][token][head] where x is, else contiguous."""
    if x.stride(3) == 1 and x.stride(2) > x.stride(1) > 0:
        batch, heads, tokens, dim = x.shape
        return x.new_empty(batch, tokens, heads, dim).transpose(1, 2)
    return x.new_empty(x.shape)


def pool_gradients(
    ops: Any,
    grad: Sequence[Tensor | None],
    inputs: Sequence[Tensor | None],
    thw: Sequence[Grid],
    pool: Sequence[Pool],
    has_cls: bool,
    norm_eps: Sequence[float | None],
) -> list[list[Tensor | None]]:
    """Per branch the gradients of x, weight, norm_weight and norm_bias, None where the input requires none.

    `ops` is the namespace of the forward op. `inputs` are the x of all branches, then their weights, norm weights and
    norm biases. A branch whose output has no gradient is left out of the call.
    """
    branches = len(grad)
    by_branch = [inputs[i::branches] for i in range(branches)]
    needs = [[tensor is not None and tensor.requires_grad for tensor in branch] for branch in by_branch]
    found: list[list[Tensor | None]] = [[None] * 4 for _ in range(branches)]
    active = [i for i in range(branches) if grad[i] is not None and any(needs[i])]
    if not active:
        return found

    geometry = [pool[i] for i in active]
    like = by_branch[0][0]
    assert like is not None
    x, *parameters = (stored([by_branch[i][which] for i in active], like) for which in range(4))
    gradients = ops.qkv_pool3d_norm_backward(
        [grad[i] for i in active],
        x,
        flat(thw[i] for i in active),
        has_cls,
        [p.mode for p in geometry],
        flat(p.kernel for p in geometry),
        flat(p.stride for p in geometry),
        flat(p.padding for p in geometry),
        *parameters,
        stored_eps([norm_eps[i] for i in active]),
        [needed for i in active for needed in needs[i]],
    )
    for place, i in enumerate(active):
        found[i] = present(gradients[4 * place : 4 * place + 4], needs[i])
    return found


register_not_differentiable("qkv_pool3d_norm")
