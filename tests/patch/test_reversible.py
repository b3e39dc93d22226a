"""Layers inside a reversible network, which runs them again in its backward: SlowFast's Rev-MViT."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import mvit_kernels

from .layers import imported, placed
from .standins import slowfast
from .standins.reversible import ReversibleMViT

PATH, NAME = "slowfast.models.attention", "MultiScaleAttention"


@pytest.fixture(params=["stand-in", "own class"])
def layer(request: pytest.FixtureRequest) -> Iterator[type[nn.Module]]:
    if request.param == "own class":
        yield imported(PATH, NAME)
        return
    cls = type(NAME, (slowfast.MultiScaleAttention,), {"__module__": PATH, "__qualname__": NAME})
    with placed(PATH, NAME, cls):
        yield cls


def model_of(layer: type[nn.Module], dtype: torch.dtype, drop_rate: float = 0.0) -> ReversibleMViT:
    torch.manual_seed(0)
    model = ReversibleMViT(layer, drop_rate).to(dtype).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def step(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of every parameter, by one `backward`."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    out = model(x)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    return [out.detach(), x.grad, *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize("drop_rate", [0.0, 0.3])
def test_gradients_are_those_of_the_host(layer: type[nn.Module], drop_rate: float, backend: str) -> None:
    model = model_of(layer, torch.float64, drop_rate)
    x = torch.randn(2, 2 * 8 * 8, 16, dtype=torch.float64)
    host = step(model, x)
    report = mvit_kernels.accelerate(model)
    assert len(report.replaced) == 5, str(report)
    ours = step(model, x)
    model.remember = True
    remembered = step(model, x)
    largest = max(float(tensor.abs().max()) for tensor in host[1:])
    for a, b, c in zip(ours, remembered, host, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-8, atol=1e-12 * largest)
        torch.testing.assert_close(b, c, rtol=1e-8, atol=1e-12 * largest)


def test_a_layer_gives_the_same_bits_when_it_is_run_again_for_its_gradient(layer: type[nn.Module]) -> None:
    """What is subtracted in the backward is what was added in the forward, so that activations do not drift."""
    model = model_of(layer, torch.float32)
    mvit_kernels.accelerate(model)
    attention = model.first[0].F
    x = torch.randn(2, 2 * 8 * 8, 16)
    with torch.no_grad():
        first = attention(x)
    again = attention(x.clone().requires_grad_())
    assert torch.equal(first, again)


def test_float32_is_as_near_to_float64_as_the_host_is(layer: type[nn.Module]) -> None:
    exact = model_of(layer, torch.float64)
    x = torch.randn(2, 2 * 8 * 8, 16, dtype=torch.float64)
    single = copy.deepcopy(exact).float()
    oracle, eager = step(exact, x), step(single, x.float())
    mvit_kernels.accelerate(single)
    ours = step(single, x.float())
    largest = max(float(tensor.abs().max()) for tensor in oracle[1:])
    for a, b, c in zip(ours, eager, oracle, strict=True):
        assert float((a - c).abs().max()) <= 3 * float((b - c).abs().max()) + 1e-6 * largest
