"""Builds csrc/emulation, which runs the CUDA sources on a CPU, into build/ once; later runs rebuild what changed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mvit_kernels import backends
from mvit_kernels.backends import cuda, registry
from mvit_kernels.backends.cuda import CudaBackend
from mvit_kernels.ops import contract

ROOT = Path(__file__).resolve().parents[2]


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where the tests of the ops run: on the GPU by the library itself, or here by the emulation."""


def build_emulation(folder: str, *options: str) -> Path:
    """The build's folder. A compiler error fails the test with the compiler's words."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed: the CUDA kernels are not run")
    scripts = sysconfig.get_path("scripts")
    cmake, ninja = (shutil.which(name, path=scripts) or shutil.which(name) for name in ("cmake", "ninja"))
    if cmake is None or ninja is None:
        pytest.skip("cmake or ninja is not installed: the CUDA kernels are not run")
    tree = ROOT / "build" / folder
    torch_folder = Path(torch.__file__).parent
    configure = [
        *(cmake, "-G", "Ninja", "-S", str(ROOT / "csrc" / "emulation"), "-B", str(tree)),
        *(f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}"),
        *(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", *options),
        *(f"-DMVIT_TORCH_INCLUDE={torch_folder / 'include'}", f"-DMVIT_TORCH_LIB={torch_folder / 'lib'}"),
    ]
    for command in (configure, [cmake, "--build", str(tree), "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return tree


def module_in(tree: Path) -> Path:
    return next(tree.glob("mvit_emulation*.so"))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("mvit_emulation", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def emulation() -> ModuleType:
    return load(module_in(build_emulation("emulation")))


@pytest.fixture(scope="session")
def sanitized_emulation() -> Path:
    """The module's file, built with AddressSanitizer and UndefinedBehaviorSanitizer; it needs a process of its own."""
    return module_in(build_emulation("emulation-sanitized", "-DMVIT_SANITIZE=ON"))


class EmulatedCudaBackend(CudaBackend):
    """The CUDA backend on CPU tensors: its bindings and kernels, run by csrc/emulation."""

    namespace = "mvit_kernels_emulated"
    device = "cpu"

    def unavailable(self) -> str | None:
        return None

    def variant(self) -> str | None:
        return "emulated"


@pytest.fixture(scope="session")
def emulated_ops() -> None:
    """torch.ops.mvit_kernels_emulated."""
    library = build_emulation("emulation") / "libmvit_kernels_emulated.so"
    contract.add_namespace(EmulatedCudaBackend.namespace)
    torch.ops.load_library(str(library))


@pytest.fixture
def cuda_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaBackend]:
    """Every op runs on the CUDA backend: on the GPU of this machine, or in the emulation."""
    backend = registry.get("cuda")
    if DEVICE == "cpu":
        request.getfixturevalue("emulated_ops")
        backend = EmulatedCudaBackend()
        monkeypatch.setitem(registry._BACKENDS, "cuda", backend)
        monkeypatch.setattr(cuda, "multiprocessors", lambda: 108)
    elif reason := backend.unavailable():
        pytest.skip(f"the CUDA backend is not there: {reason}")
    assert isinstance(backend, CudaBackend)
    with backends.use_backend("cuda"):
        yield backend
