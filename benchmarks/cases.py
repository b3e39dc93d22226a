"""What is measured: attention layers of published models, and the implementations of them to compare."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import baselines
import torch
from torch import Tensor

from mvit_kernels import backends, models, reference, use_backend
from mvit_kernels.models import LayerShape
from mvit_kernels.modules import MultiHeadPoolingAttention

DEFAULT_MODELS = ("mvit_v1_b_16x4", "mvit_v2_s_16x4")
KERNEL_BACKENDS = [name for name in backends.available() if name != "eager"]
Outputs = list[Tensor]
BASELINES = {"eager": baselines.explicit, "sdpa": baselines.sdpa}


@dataclass(frozen=True)
class LayerCase:
    """A layer of a published model, and the first model that has it."""

    model: str
    shape: LayerShape

    def __str__(self) -> str:
        q, k = ("x".join(map(str, grid)) for grid in (self.shape.grid_q, self.shape.grid_kv))
        return f"{self.model}.blocks.{self.shape.block} H{self.shape.heads} D{self.shape.head_dim} q {q} kv {k}"


def distinct_layers(names: list[str]) -> list[LayerCase]:
    """Layers in model order; of those that differ in nothing that their attention sees, the first."""
    cases: dict[tuple[Any, ...], LayerCase] = {}
    for name in names:
        for s in models.layer_shapes(name):
            seen = (s.dim, s.att_dim, s.heads, s.has_cls, s.grid, s.pool_q, s.pool_kv, s.residual, s.table_rows)
            cases.setdefault(seen, LayerCase(name, s))
    return list(cases.values())


class Layer:
    """A layer with random parameters, its input, and what its outputs must be.

    Results are lists of tensors: [output], or with `backward` [output, gradient of x, gradients of the parameters].
    """

    def __init__(self, case: LayerCase, batch: int, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.device("meta"):  # a large model for one layer of it
            block: Any = models.create(case.model).blocks[case.shape.block]
        self.attention: MultiHeadPoolingAttention = block.attn.to_empty(device="cpu").eval()
        with torch.no_grad():
            for name, parameter in self.attention.named_parameters():
                # Random everywhere, so that no part of the layer can be left out unnoticed.
                around = 1.0 if name.startswith("norm") and name.endswith("weight") else 0.0
                parameter.normal_(
                    around, 0.1 if parameter.dim() < 2 else parameter[0].numel() ** -0.5, generator=generator
                )
        self.attention.to(device, dtype)
        self.thw = case.shape.grid
        self.x = torch.randn(batch, case.shape.num_tokens, case.shape.dim, generator=generator).to(device, dtype)
        self.grad = torch.randn(batch, case.shape.num_q, case.shape.att_dim, generator=generator).to(device, dtype)

    def call(self, implementation: str) -> Callable[[], Tensor]:
        """The layer's forward by one implementation."""
        if implementation in BASELINES:
            attend = BASELINES[implementation]
            return lambda: baselines.forward(self.attention.describe(), self.x, self.thw, attend)
        return lambda: self._on_backend(implementation)

    def _on_backend(self, name: str) -> Tensor:
        with use_backend(name):
            return self.attention(self.x, self.thw)[0]

    def with_backward(self, forward: Callable[[], Tensor]) -> Callable[[], Outputs]:
        """Forward, and the gradients of x and of every parameter."""
        inputs = [self.x.requires_grad_(), *self.attention.parameters()]

        def call() -> Outputs:
            out = forward()
            return [out, *torch.autograd.grad(out, inputs, self.grad)]

        return call

    def reference(self) -> Tensor:
        """The specification in the tested dtype: what "as good as eager" is measured by."""
        return reference.multi_head_pooling_attention(self.attention.describe(), self.x, self.thw)[0]

    @cached_property
    def double(self) -> Layer:
        """This layer in float64, from the same rounded values."""
        with torch.inference_mode(False):  # for a backward may follow
            other = copy.copy(self)
            other.attention = copy.deepcopy(self.attention).double()
            other.x, other.grad = self.x.detach().double(), self.grad.double()
        return other

    @cached_property
    def forward_expected(self) -> tuple[Outputs, Outputs]:
        with torch.inference_mode():
            return [self.reference()], [self.double.reference()]

    @cached_property
    def backward_expected(self) -> tuple[Outputs, Outputs]:
        return self.with_backward(self.reference)(), self.double.with_backward(self.double.reference)()
