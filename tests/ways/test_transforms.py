"""torch.func, forward-mode derivatives, torch.jit and torch.fx."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

import mvit_kernels
from mvit_kernels import accelerate, backends, restore

from .hosts import HOSTS, clips, torchvision_model

pytest.importorskip("torchvision")


@pytest.mark.parametrize("host", HOSTS)
def test_functional_call_uses_the_given_parameters(host: str, backend) -> None:
    model, x = HOSTS[host](), clips()
    other = {name: 1.1 * parameter.detach() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        expected = functional_call(model, other, (x,))
        accelerate(model)
        with backends.record() as log:
            found = functional_call(model, other, (x,))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert {decision.backend for decision in log} == {backend}


def test_vmap_over_parameters_and_per_sample_gradients() -> None:
    """Inside a torch.func transform the automatic choice is eager, and says why."""
    members = [torchvision_model(2, num_classes=n) for n in (7, 7)]
    for parameter in members[1].parameters():
        parameter.data *= 1.1
    parameters, buffers = stack_module_state(members)
    x = clips(3)
    with torch.no_grad():
        expected = torch.stack([member(x) for member in members])
    model = members[0]
    names = dict(model.named_parameters())

    def loss(parameters, sample):
        return functional_call(model, parameters, (sample[None],)).square().sum()

    expected_grads = vmap(grad(loss), (None, 0))(names, x)
    scale = max(float(value.abs().max()) for value in expected_grads.values())
    accelerate(model)
    with backends.record() as log:
        found = vmap(lambda p, b: functional_call(model, (p, b), (x,)))(parameters, buffers)
        found_grads = vmap(grad(loss), (None, 0))(names, x)
    assert {decision.backend for decision in log} == {"eager"}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for name, value in expected_grads.items():
        torch.testing.assert_close(found_grads[name], value, rtol=1e-3, atol=1e-7 * scale)


def test_a_kernel_backend_asked_for_refuses_a_transform_and_says_why(backend) -> None:
    model, x = torchvision_model(2), clips()
    accelerate(model)
    with pytest.raises(mvit_kernels.UnsupportedError, match=r"inside a torch.func transform"):
        vmap(lambda sample: model(sample[None]))(x)


def test_forward_mode_derivatives() -> None:
    model, x = torchvision_model(2).double(), clips(1, torch.float64)

    def tangents() -> list[torch.Tensor]:
        with torch.no_grad(), forward_ad.dual_level():
            dual = forward_ad.unpack_dual(model(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
        return [dual, jvp(model, (x,), (torch.ones_like(x),))[1]]

    expected = tangents()
    accelerate(model)
    for found, value in zip(tangents(), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-8, atol=1e-12)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace_of_an_accelerated_model_records_standard_ops() -> None:
    model, x = torchvision_model(2), clips()
    with torch.no_grad():
        expected = model(x)
        accelerate(model)
        traced = torch.jit.trace(model, x, check_trace=False)
        torch.testing.assert_close(traced(x), expected, rtol=1e-4, atol=1e-5)
    assert not any(node.kind().startswith("mvit_kernels") for node in traced.inlined_graph.nodes())


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_jit_and_fx_see_the_host_after_restore() -> None:
    model, x = torchvision_model(2), clips()
    before = torch.fx.symbolic_trace(model).code
    expected = model(x)
    accelerate(model)
    restore(model)
    assert torch.fx.symbolic_trace(model).code == before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, x, check_trace=False)
    for again in (torch.jit.script(model), traced):
        assert torch.equal(again(x), expected)


def test_fx_keeps_an_accelerated_layer_as_one_call(backend) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    model, x = torchvision_model(2), clips()
    seen: list[torch.Tensor] = []
    model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model(x)
        accelerate(model)
        extractor = create_feature_extractor(model, {"norm": "tokens"})
        layers = [node.target for node in extractor.graph.nodes if str(node.target).endswith("attn")]
        assert layers == ["blocks.0.attn", "blocks.1.attn"]
        with backends.record() as log:
            torch.testing.assert_close(extractor(x)["tokens"], seen[0], rtol=1e-4, atol=1e-5)
        assert {decision.backend for decision in log} == {backend}
