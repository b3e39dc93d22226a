"""torchvision's whole models on the real clip, or noise where it is not there: eager, and accelerated."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import pytest
import torch
from cases import KERNEL_BACKENDS
from summary import run_case
from torch import Tensor, nn

import mvit_kernels
from mvit_kernels import accuracy, video
from mvit_kernels.cli.workload import build, torchvision_names

Case = tuple[str, nn.Module, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module", params=torchvision_names())
def model(request: pytest.FixtureRequest, device: torch.device, dtype: torch.dtype) -> Case:
    """Name, eager model, input, its logits and the float64 logits."""
    workload = build(request.param)
    batch, clip = request.config.getoption("--batch"), video.default_clip()
    if clip is not None and importlib.util.find_spec("av"):
        x = video.load_clips(clip, frames=workload.size[0], clips=batch, transform=workload.transform)
    else:
        x = torch.randn(workload.input_shape(batch), generator=torch.Generator().manual_seed(0))
    eager, x = workload.model.to(device, dtype), x.to(device, dtype)
    with torch.inference_mode():
        logits, oracle = eager(x), copy.deepcopy(eager).double()(x.double())
    return workload.name, eager, x, logits, oracle


@pytest.mark.parametrize("implementation", ["eager", *KERNEL_BACKENDS])
def test_whole_model(
    model: Case,
    implementation: str,
    benchmark: Any,
    pytestconfig: pytest.Config,
    device: torch.device,
) -> None:
    name, eager, x, logits, oracle = model

    def call() -> Tensor:
        if implementation == "eager":
            return eager(x)
        with mvit_kernels.use_backend(implementation):
            return eager(x)

    with torch.inference_mode():
        if implementation == "eager":
            run_case(benchmark, pytestconfig, name, implementation, call, device)
            return
        with mvit_kernels.accelerated(eager):
            verdict = accuracy.judge(call(), logits, oracle)
            if not verdict.max_passed:
                pytest.fail(f"not timed, the logits are wrong: {verdict}", pytrace=False)
            run_case(benchmark, pytestconfig, name, implementation, call, device)
