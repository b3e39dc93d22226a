"""Settings common to all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    # Before triton is imported: its kernels then run in its interpreter, for the tests in tests/triton.
    os.environ.setdefault("TRITON_INTERPRET", "1")
else:
    # PyTorch rounds float32 convolutions to TF32 by default, and a bound would follow the eager result's error.
    torch.backends.cudnn.allow_tf32 = False

from mvit_kernels import backends

# Examples are drawn the same way in every run, and no test has a time limit in it.
settings.register_profile(
    "mvit_kernels", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("mvit_kernels")

KERNEL_BACKENDS = [name for name in backends.available() if name not in ("eager", "cuda", "triton")]
"""The backends under test on CPU tensors; those of GPUs have tests of their own, in tests/cuda and tests/triton."""


@pytest.fixture(params=KERNEL_BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test on each kernel backend in turn, with no way back to the reference."""
    with backends.use_backend(request.param):
        yield request.param


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Uninitialised tensors, those made in C++ included, come filled with NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were left to a machine with a GPU."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "gpu" in report.keywords]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests need a GPU and were skipped: torch sees none here")
