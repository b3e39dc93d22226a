"""Linears inside the layer that are no longer plain: quantised, LoRA, parametrised, pruned. Respected or reported."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from mvit_kernels import accelerate, backends, restore
from mvit_kernels.patch.swap import is_accelerated

from .hosts import clips, torchvision_model

pytest.importorskip("torchvision")


class LoRA(nn.Module):
    """A frozen linear plus a low-rank update."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.randn(rank, base.in_features))
        self.b = nn.Parameter(torch.randn(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def quantise(model: nn.Module) -> None:
    with pytest.warns(DeprecationWarning):
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, inplace=True)


def lora_on_qkv(model: nn.Module) -> None:
    for block in model.blocks:
        block.attn.qkv = LoRA(block.attn.qkv)


def parametrise(model: nn.Module) -> None:
    for block in model.blocks:
        parametrize.register_parametrization(block.attn.qkv, "weight", Doubled())


def pruned(model: nn.Module) -> None:
    for block in model.blocks:
        prune.l1_unstructured(block.attn.qkv, "weight", amount=0.5)


ALTERATIONS = {
    "dynamic quantisation": (quantise, "qkv is "),
    "LoRA": (lora_on_qkv, "qkv is LoRA,"),
    "parametrised": (parametrise, "qkv is ParametrizedLinear,"),
    "pruned": (pruned, "qkv has hooks"),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_projection_keeps_the_host_forward_and_is_reported(name: str) -> None:
    alter, reason = ALTERATIONS[name]
    model, x = torchvision_model(2), clips()
    with torch.no_grad():
        before = model(x)
        alter(model)
        expected = model(x)
        assert not torch.allclose(expected, before, rtol=1e-3, atol=1e-5)
        report = accelerate(model)
        assert not report.replaced
        assert all(layer.reason.startswith(reason) for layer in report.left_alone) and len(report.left_alone) == 2
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", ALTERATIONS)
@pytest.mark.filterwarnings("ignore:mvit_kernels:UserWarning")
def test_one_altered_after_accelerate_is_respected(name: str) -> None:
    alter, _ = ALTERATIONS[name]
    model, x = torchvision_model(2), clips()
    accelerate(model)
    alter(model)
    with torch.no_grad(), backends.record() as log:
        found = model(x)
        assert not log
        assert torch.equal(found, restore(model)(x))


def test_an_altered_output_projection_runs_as_a_module(backend) -> None:
    model, x = torchvision_model(2), clips()
    for block in model.blocks:
        block.attn.project[0] = LoRA(block.attn.project[0])
    with torch.no_grad():
        expected = model(x)
        assert len(accelerate(model).replaced) == 2
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_parametrised_table_is_read_and_restore_keeps_the_parametrisation(backend) -> None:
    """A parametrisation derives a class from the accelerated one; restore takes out only its own."""
    model, x = torchvision_model(2), clips()
    twin = copy.deepcopy(model)
    accelerate(model)
    for each in (model, twin):
        parametrize.register_parametrization(each.blocks[0].attn, "rel_pos_h", Doubled())
    with torch.no_grad():
        with backends.record() as log:
            torch.testing.assert_close(model(x), twin(x), rtol=1e-4, atol=1e-5)
        assert sum(decision.problem.op == "pooling_attention" for decision in log) == 2
        restore(model)
        attention = model.blocks[0].attn
        assert not is_accelerated(attention)
        assert type(attention).__name__ == "ParametrizedAcceleratedMultiscaleAttention"
        assert parametrize.is_parametrized(attention, "rel_pos_h")
        assert torch.equal(model(x), twin(x))
        parametrize.remove_parametrizations(attention, "rel_pos_h")
        assert type(attention) is type(twin.blocks[1].attn)
