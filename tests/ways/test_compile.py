"""torch.compile(fullgraph=True) of accelerated models: no graph break, no recompilation per batch size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import mvit_kernels
from mvit_kernels import accelerate

from .hosts import HOSTS, assert_same, clips, gradients, torchvision_model

pytest.importorskip("torchvision")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("host", HOSTS)
def test_static_batch_has_the_same_gradients(host: str, backend) -> None:
    model, x = HOSTS[host](), clips()
    expected = gradients(model, model, x)
    accelerate(model)
    assert_same(gradients(model, torch.compile(model, fullgraph=True, backend="aot_eager"), x), expected)


@pytest.mark.parametrize("host", HOSTS)
def test_one_compilation_serves_every_batch_size(host: str, backend) -> None:
    model = HOSTS[host]()
    expected = {batch: gradients(model, model, clips(batch)) for batch in (2, 3, 5)}
    accelerate(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")

    def of_any_batch(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.mark_dynamic(x, 0)
        return compiled(x)

    assert_same(gradients(model, of_any_batch, clips(2)), expected[2])
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch in (3, 5):
            assert_same(gradients(model, compiled, clips(batch)), expected[batch])


def test_dynamic_everything(backend) -> None:
    """dynamic=True makes symbols of the sizes, of LayerNorm's eps and of the scale too."""
    attention = torchvision_model(2).blocks[0].attn
    x = torch.randn(2, 1 + 2 * 8 * 8, 16)
    expected = attention(x, (2, 8, 8))[0]
    accelerate(attention)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(x, (2, 8, 8))[0], expected, rtol=1e-4, atol=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled(torch.cat((x, x, x)), (2, 8, 8))


def test_inductor(backend) -> None:
    model, x = torchvision_model(2), clips()
    expected = gradients(model, model, x)
    accelerate(model)
    assert_same(gradients(model, torch.compile(model, fullgraph=True), x), expected)


class Wrapped(nn.Sequential):
    pass


def test_a_layer_that_falls_back_compiles_too() -> None:
    model, x = torchvision_model(2), clips()
    accelerate(model)
    model.blocks[0].attn.qkv = Wrapped(model.blocks[0].attn.qkv)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with pytest.warns(UserWarning, match="runs its own forward: qkv is Wrapped"):
        found = gradients(model, compiled, x)
    assert_same(found, gradients(model, model, x))


def test_a_backend_asked_for_is_compiled_in(backend) -> None:
    """The choice is part of what the compiler guards on: another one makes another graph."""
    model, x = torchvision_model(2), clips()
    accelerate(model)
    graphs: list[set[str]] = []

    def look(module: torch.fx.GraphModule, _):
        graphs.append({str(node.target) for node in module.graph.nodes})
        return module

    compiled = torch.compile(model, fullgraph=True, backend=look)
    for name in (backend, "eager", backend):
        with torch.no_grad(), mvit_kernels.use_backend(name):
            compiled(x)
    has_ops = [any("mvit_kernels" in target for target in graph) for graph in graphs]
    assert has_ops == [True, False]
