"""accelerate on the layers of every library: same numbers and gradients, same object, and a reason where it is not."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mvit_kernels import accelerate, backends, restore
from mvit_kernels.patch.swap import is_accelerated
from tests.numerics import assert_gradients_within_rule, assert_within_rule

from . import supported_models
from .layers import HOST_POOLING, LAYERS, Layer


def every(replaced: bool) -> pytest.MarkDecorator:
    """The layers that are replaced, or left alone; each as a stand-in, as the library's own class, or as both."""
    cases = []
    for layer in (layer for layer in LAYERS if layer.replaced == replaced):
        if layer.standin is not None:
            cases.append(pytest.param((layer, False), id=layer.name))
        if layer.real:
            cases.append(pytest.param((layer, True), id=f"{layer.name} ({layer.host[0].split('.')[0]}'s own)"))
    return pytest.mark.parametrize("case", cases, indirect=True)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Iterator[tuple[Layer, nn.Module, tuple[Any, ...]]]:
    layer, own = request.param
    with layer.built(own) as (module, inputs):
        yield layer, module, inputs


def run(module: nn.Module, inputs: tuple[Any, ...], dtype: torch.dtype) -> tuple[Tensor, list[Tensor | None]]:
    """The output, and the gradients of the input and of every parameter."""
    module.to(dtype)
    x = inputs[0].to(dtype).requires_grad_()
    torch.manual_seed(3)
    result = module(x, *inputs[1:])
    out = result[0] if isinstance(result, tuple) else result
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    gradients = torch.autograd.grad((out * weight).sum(), [x, *module.parameters()], allow_unused=True)
    return out.detach(), list(gradients)


@every(replaced=True)
def test_outputs_and_every_gradient(case, backend) -> None:
    layer, module, inputs = case
    module.eval()
    oracle = run(copy.deepcopy(module), inputs, torch.float64)
    eager = run(copy.deepcopy(module), inputs, torch.float32)
    report = accelerate(module)
    assert len(report.replaced) == 1, str(report)
    assert report.replaced[0].host_pooling == (layer.outcome == HOST_POOLING)
    kernel = run(module, inputs, torch.float32)
    assert_within_rule(kernel[0], eager[0], oracle[0])
    largest = max(float(o.abs().max()) for o in oracle[1] if o is not None)
    judged = []
    for k, e, o in zip(kernel[1], eager[1], oracle[1], strict=True):
        assert (k is None) == (o is None)
        if o is None:
            continue
        if float(o.abs().max()) < 1e-12 * largest:
            # Zero but for rounding: a shift of all keys does not change the softmax. It has no scale of its own.
            assert float(k.abs().max()) <= 1e-5 * largest
        else:
            judged.append((k, e, o))
    assert_gradients_within_rule(judged)
    double = run(module, inputs, torch.float64)
    torch.testing.assert_close(double[0], oracle[0], rtol=1e-10, atol=1e-12)
    for k, o in zip(double[1], oracle[1], strict=True):
        if o is not None:
            torch.testing.assert_close(k, o, rtol=1e-8, atol=1e-10 * float(o.abs().max()) + 1e-14 * largest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every(replaced=True)
def test_half_precision(case, dtype: torch.dtype, backend) -> None:
    """A model that was cast, in inference: from the same rounded parameters and input."""
    _, module, inputs = case
    module.eval().to(dtype)
    x = inputs[0].to(dtype)

    def run_in(kind: torch.dtype, layer: nn.Module) -> Tensor:
        with torch.no_grad():
            result = layer.to(kind)(x.to(kind), *inputs[1:])
        return result[0] if isinstance(result, tuple) else result

    oracle = run_in(torch.float64, copy.deepcopy(module))
    try:
        eager = run_in(dtype, copy.deepcopy(module))
    except NotImplementedError:  # PyTorch has no avg_pool3d in half precision on CPUs; the reference has
        with backends.use_backend("eager"):
            twin = copy.deepcopy(module)
            accelerate(twin)
            eager = run_in(dtype, twin)
    assert len(accelerate(module).replaced) == 1
    kernel = run_in(dtype, module)
    assert kernel.dtype == dtype
    assert_within_rule(kernel, eager, oracle)


@every(replaced=True)
def test_it_stays_the_object_it_was(case) -> None:
    _, module, inputs = case
    inputs = (inputs[0].double(), *inputs[1:])
    module.double().train()
    cls, state, children = type(module), copy.deepcopy(module.state_dict()), dict(module.named_modules())

    def call(layer: nn.Module) -> Any:
        torch.manual_seed(3)
        with torch.no_grad():
            return layer(*inputs)

    before = call(copy.deepcopy(module))
    accelerate(module)
    assert len(accelerate(module).already) == 1 and isinstance(module, cls) and module.training
    assert dict(module.named_modules()) == children
    now = module.state_dict()
    assert list(now) == list(state) and all(torch.equal(now[key], state[key]) for key in state)

    seen: list[str] = []
    handle = module.proj.register_forward_hook(lambda *_: seen.append("proj"))
    after = call(module)
    handle.remove()
    assert seen == ["proj"]
    if isinstance(before, tuple):
        assert type(after) is tuple and type(after[1]) is type(before[1]) and after[1] == before[1]
        before, after = before[0], after[0]
    assert type(after) is Tensor
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-11)

    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert is_accelerated(twin) and type(restore(twin)) is cls
    assert type(restore(module)) is cls and "forward" not in vars(module)
    module.eval()
    accelerate(module)
    assert not any(part.training for part in module.modules())


@every(replaced=False)
def test_what_is_left_alone_has_its_reason_and_its_own_forward(case) -> None:
    layer, module, inputs = case
    cls = type(module)
    report = accelerate(module)
    assert not report.replaced and layer.outcome in report.left_alone[0].reason, str(report)
    assert type(module) is cls
    if layer.runs:
        module(*inputs)


def test_the_table_of_supported_models_is_up_to_date() -> None:
    assert supported_models.PATH.read_text() == supported_models.text(), "run python -m tests.patch.supported_models"
