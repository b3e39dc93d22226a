"""The Triton kernels on a GPU where there is one, else in Triton's interpreter, always against the float64 oracle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from mvit_kernels import backends
from mvit_kernels.backends.triton import interpret_on_cpu
from mvit_kernels.triton_kernels import tuned

pytest.importorskip("triton", reason="triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

_NEEDS_GPU = "bfloat16 is wrong in Triton's interpreter, it needs a GPU"

DTYPES = [
    pytest.param(torch.float32, id="float32"),
    pytest.param(torch.float16, id="float16"),
    pytest.param(
        torch.bfloat16,
        id="bfloat16",
        marks=[pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cpu", reason=_NEEDS_GPU)],
    ),
]


@pytest.fixture(autouse=True)
def triton_backend() -> Iterator[None]:
    with interpret_on_cpu() if DEVICE == "cpu" else nullcontext(), backends.use_backend("triton"):
        yield


@pytest.fixture(autouse=True, scope="session")
def one_interpreter_thread() -> Iterator[None]:
    """The interpreter works on small arrays; threads only get in each other's way."""
    before = torch.get_num_threads()
    if os.environ.get("TRITON_INTERPRET") == "1":
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of the user's launch table, in a cache folder of the test's own; not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuned.rows.cache_clear()
    yield tmp_path / "mvit_kernels" / "triton_launch_table.json"
    tuned.rows.cache_clear()
