"""torchvision's attention layers on the CPU against the bar that the project has set itself.

    pytest benchmarks/test_cpu_targets.py

Each row is one run, alternating: its ratio is the median, over rounds, of eager's seconds over the kernels' seconds in
the same round. Inputs are those that the layers get in a forward of the model with random weights. The bar is reported,
not asserted: how fast a machine is, is no property of the code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from peak import layer_multiply_adds, multiply_adds
from torch import Tensor, nn

import mvit_kernels
from mvit_kernels import _library, measure, models, use_backend

pytestmark = pytest.mark.skipif(_library.load_error() is not None, reason=str(_library.load_error()))

MODELS = {"mvit_v1_b": "mvit_v1_b_16x4", "mvit_v2_s": "mvit_v2_s_16x4"}
"""torchvision's name, and that of the same published shapes here."""

TARGETS: dict[tuple[str, str, str], tuple[float, float]] = {
    ("mvit_v1_b", "layers forward", "float32"): (3.0, 3.8),
    ("mvit_v2_s", "layers forward", "float32"): (3.5, 4.5),
    ("mvit_v1_b", "layers forward + backward", "float32"): (2.5, 3.5),
    ("mvit_v2_s", "layers forward + backward", "float32"): (3.5, 5.0),
    ("mvit_v1_b", "layers forward", "bfloat16"): (1.5, 2.0),
    ("mvit_v2_s", "layers forward", "bfloat16"): (2.5, 4.0),
}
"""Speed-ups over eager (under autocast in bfloat16): at least, and what is aimed at."""

WORK = ("layers forward", "layers forward + backward")
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
"""Largest difference from eager, of scale, that is timed. The numerics are tested in tests/, much more tightly."""


@dataclass(frozen=True)
class Case:
    eager: nn.Module
    kernels: nn.Module  # a copy, accelerated
    inputs: list[tuple[Tensor, Any]]  # of each layer
    multiply_adds: float  # of one forward of all layers

    def layers(self, model: nn.Module) -> list[nn.Module]:
        return [block.attn for block in model.blocks]


@cache
def case(name: str) -> Case:
    import torchvision.models.video

    torch.manual_seed(0)
    eager = getattr(torchvision.models.video, name)().eval()
    inputs: list[tuple[Tensor, Any]] = []
    hooks = [
        block.attn.register_forward_pre_hook(lambda _, arguments: inputs.append((arguments[0].clone(), arguments[1])))
        for block in eager.blocks
    ]
    with torch.no_grad():
        eager(torch.randn(1, 3, 16, 224, 224))
    for hook in hooks:
        hook.remove()
    kernels = copy.deepcopy(eager)
    mvit_kernels.accelerate(kernels)
    shapes = models.layer_shapes(MODELS[name])
    total = sum(layer_multiply_adds(shape, block.attn) for shape, block in zip(shapes, eager.blocks, strict=True))
    return Case(eager, kernels, inputs, total)


def work(case: Case, model: nn.Module, what: str, dtype: str) -> Callable[[], list[Tensor]]:
    """A call that returns the outputs, or with backward the gradients of the layers' inputs."""

    def autocast() -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")

    def forward() -> list[Tensor]:
        with torch.inference_mode(), autocast():
            return [layer(*inputs)[0] for layer, inputs in zip(case.layers(model), case.inputs, strict=True)]

    def backward() -> list[Tensor]:
        found = []
        for layer, (x, thw) in zip(case.layers(model), case.inputs, strict=True):
            leaf = x.detach().requires_grad_()
            with autocast():
                out = layer(leaf, thw)[0]
            found.append(torch.autograd.grad(out, [leaf, *layer.parameters()], torch.ones_like(out))[0])
        return found

    return backward if "backward" in what else forward


def assert_same(kernels: list[Tensor], eager: list[Tensor], dtype: str) -> None:
    for ours, theirs in zip(kernels, eager, strict=True):
        difference = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
        if not difference <= TOLERANCE[dtype]:
            pytest.fail(f"not timed, the result is wrong: {difference:.1e} of scale from eager's", pytrace=False)


@pytest.fixture
def report(pytestconfig: pytest.Config) -> Iterator[Callable[[str], None]]:
    lines: list[str] = []
    yield lines.append
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + "\n".join(lines), flush=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("what", WORK)
@pytest.mark.parametrize("name", MODELS)
def test_speed(name: str, what: str, dtype: str, report: Callable[[str], None], pytestconfig: pytest.Config) -> None:
    built, torch_dtype = case(name), getattr(torch, dtype)
    eager = work(built, built.eager, what, dtype)
    kernels = work(built, built.kernels, what, dtype)
    with use_backend("cpu"):
        assert_same(kernels(), eager(), dtype)  # the warm-up too
        calls: dict[str, Callable[[], object]] = {"eager": eager, "kernels": kernels}
        calls["peak"] = lambda: multiply_adds(torch_dtype)
        timings = measure.time_alternating(calls, repeats=pytestconfig.getoption("--rounds"), warmup=0)
    ratio, peak = timings.speedup("kernels", over="eager"), multiply_adds(torch_dtype)
    line = f"{name} {what} {dtype}: eager {timings.spread('eager').median:.3f} s"
    line += f", kernels {timings.spread('kernels').median:.3f} s"
    line += f", {ratio.median:.2f}x ({ratio.p20:.2f} to {ratio.p80:.2f})"
    if (name, what, dtype) in TARGETS:
        line += ", at least {:.1f}x, aim {:.1f}x".format(*TARGETS[name, what, dtype])
    if what == "layers forward":
        share = timings.speedup("kernels", over="peak")  # seconds of the probe per second of the kernels
        line += f"; {100 * share.median * built.multiply_adds / peak:.0f} % of the multiply-add peak"
        line += f" ({2e-9 * peak / timings.spread('peak').median:.0f} GFLOP/s)"
    report(line)


def saved_bytes(layer: nn.Module, inputs: tuple[Tensor, Any]) -> int:
    leaf = inputs[0].detach().requires_grad_()
    layer(leaf, inputs[1])
    return measure.kept_for_backward(lambda: layer(leaf, inputs[1]))


@pytest.mark.parametrize("name", MODELS)
def test_memory_of_the_first_layer(name: str, report: Callable[[str], None]) -> None:
    built = case(name)
    inputs = built.inputs[0]
    pairs = (built.layers(built.eager)[0], built.layers(built.kernels)[0])

    def peak(layer: nn.Module) -> int:
        with torch.inference_mode():
            layer(*inputs)
            return measure.peak_extra_memory(lambda: layer(*inputs)[0])

    with use_backend("cpu"):
        for what, figure in (("peak extra memory, forward", peak), ("saved for backward", None)):
            eager, kernels = (figure(layer) if figure else saved_bytes(layer, inputs) for layer in pairs)
            report(
                f"{name} block 0 float32, {what}: eager {eager / measure.MIB:.1f} MiB, "
                f"kernels {kernels / measure.MIB:.1f} MiB, 1/{eager / kernels:.1f}"
            )
