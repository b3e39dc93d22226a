"""Every distinct attention layer of the published models: eager PyTorch, SDPA with a materialised bias, each backend.

A case is timed only after its result has passed the numerics rule against the float64 reference.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import BASELINES, DEFAULT_MODELS, KERNEL_BACKENDS, Layer, Outputs, distinct_layers
from summary import run_case

from mvit_kernels import accuracy


def check(implementation: str, results: Outputs, expected: tuple[Outputs, Outputs]) -> None:
    """Fail, before anything is timed, where a result is wrong.

    A backend must keep the numerics rule. A baseline has made no such promise (SDPA's gradients on the CPU break it by
    a little), and must only be the same layer: errors up to ten times what the rule allows.
    """
    for i, (result, eager, oracle) in enumerate(zip(results, *expected, strict=True)):
        verdict = accuracy.judge(result, eager, oracle, gradient=i > 0)
        baseline = implementation in BASELINES
        if not (verdict.error.max <= 10 * verdict.max_bound if baseline else verdict.passed):
            what = "output" if i == 0 else f"gradient {i - 1}"
            pytest.fail(f"not timed, the {what} is wrong: {verdict}", pytrace=False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = distinct_layers(metafunc.config.getoption("--model") or list(DEFAULT_MODELS))
    metafunc.parametrize("layer", cases, ids=str, indirect=True, scope="module")
    metafunc.parametrize("implementation", [*BASELINES, *KERNEL_BACKENDS])


@pytest.fixture(scope="module")
def layer(request: pytest.FixtureRequest, device: torch.device, dtype: torch.dtype) -> tuple[str, Layer]:
    return str(request.param), Layer(request.param, request.config.getoption("--batch"), dtype, device)


def test_forward(
    layer: tuple[str, Layer], implementation: str, benchmark: Any, pytestconfig: pytest.Config, device: torch.device
) -> None:
    name, built = layer
    call = built.call(implementation)
    with torch.inference_mode():
        check(implementation, [call()], built.forward_expected)
        run_case(benchmark, pytestconfig, name, implementation, call, device)


def test_forward_and_backward(
    layer: tuple[str, Layer], implementation: str, benchmark: Any, pytestconfig: pytest.Config, device: torch.device
) -> None:
    name, built = layer
    call = built.with_backward(built.call(implementation))
    check(implementation, call(), built.backward_expected)
    run_case(benchmark, pytestconfig, f"{name} + backward", implementation, call, device)
