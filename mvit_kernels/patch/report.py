"""What `accelerate` did to a model."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .. import backends
from ..description import MHPA, Block, Fused
from ..problem import AttentionProblem, LayerNormProblem

KINDS = {"attention": "attention layers", "block": "blocks"}


@dataclass(frozen=True)
class Replaced:
    """A layer that runs on mvit_kernels.

    Attributes:
        name: the module's name in the model.
        backend: where its ops go for its parameters' dtype and device.
        touched_tokens: k and v are projected only where their pooling reads.
        host_pooling: a branch is pooled by the host's own code, the attention is fused.
    """

    name: str
    backend: str
    touched_tokens: bool
    scope: str = "attention"
    host_pooling: bool = False


@dataclass(frozen=True)
class LeftAlone:
    """A layer that keeps its own forward, and why."""

    name: str
    reason: str
    scope: str = "attention"


@dataclass
class Report:
    """Every attention layer of a model, and with scope "block" every block: replaced now, before, or left alone.

    Attributes:
        model: class name of the model.
        replaced: layers this call changed.
        already: layers that ran on mvit_kernels before this call.
        left_alone: layers that keep their own forward, with the reason.
    """

    model: str
    replaced: list[Replaced] = field(default_factory=list)
    already: list[Replaced] = field(default_factory=list)
    left_alone: list[LeftAlone] = field(default_factory=list)

    def __str__(self) -> str:
        if not (self.replaced or self.already or self.left_alone):
            return (
                f"{self.model}: no multi-head pooling attention layer of a known library found; "
                "mvit_kernels.modules.MultiHeadPoolingAttention is the layer to build your own model on"
            )
        lines = [line for scope in KINDS for line in self._summary(scope)]
        if self.already:
            lines.append(f"{len(self.already)} of them ran on mvit_kernels before")
        for reason in dict.fromkeys(layer.reason for layer in self.left_alone):
            names = ", ".join(layer.name for layer in self.left_alone if layer.reason == reason)
            lines.append(f"left alone: {names}  {reason}")
        return "\n".join(lines)

    def _summary(self, scope: str) -> list[str]:
        running = [layer for layer in self.replaced + self.already if layer.scope == scope]
        total = len(running) + sum(layer.scope == scope for layer in self.left_alone)
        if total and not running:
            return [f"{self.model}: 0 of {total} {KINDS[scope]} replaced"]
        lines = []
        for backend in dict.fromkeys(layer.backend for layer in running):
            group = [layer for layer in running if layer.backend == backend]
            touched = sum(layer.touched_tokens for layer in group)
            hosted = sum(layer.host_pooling for layer in group)
            extra = f", {touched} of them with touched-token k/v" if touched else ""
            extra += f", {hosted} of them with the host's own pooling" if hosted else ""
            lines.append(f"{self.model}: {len(group)} of {total} {KINDS[scope]} on {backend}{extra}")
        return lines


def describe_replaced(name: str, layer: MHPA | Block) -> Replaced:
    """The report's line for a layer, its backend chosen for a problem of its parameters' dtype and device."""
    return _replaced_block(name, layer) if isinstance(layer, Block) else _replaced_attention(name, layer)


def _replaced_block(name: str, layer: Block) -> Replaced:
    weight = layer.norm2.weight
    device, dtype = ("cpu", torch.float32) if weight is None else (weight.device.type, weight.dtype)
    needs_grad = torch.is_grad_enabled() and weight is not None and weight.requires_grad
    problem = LayerNormProblem(device, dtype, 1, 1, dtype, needs_grad)
    return Replaced(name, backends.describe_choice(problem), False, "block")


def _replaced_attention(name: str, layer: MHPA) -> Replaced:
    weight = layer.weight
    width = weight.shape[0] // (3 if isinstance(layer.qkv, Fused) else 1)
    problem = AttentionProblem(
        device=weight.device.type,
        dtype=weight.dtype,
        batch=1,
        heads=layer.heads,
        head_dim=width // layer.heads,
        num_q=1,
        num_k=1,
        rel_pos=layer.rel_pos is not None,
        has_cls=layer.has_cls,
        residual=layer.residual,
        needs_grad=torch.is_grad_enabled() and weight.requires_grad,
    )
    return Replaced(name, backends.describe_choice(problem), layer.uses_touched_tokens, host_pooling=layer.host_pooling)
