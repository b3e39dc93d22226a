"""Builds csrc/emulation, which runs the CUDA sources on a CPU, into build/ once; later runs rebuild what changed."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build_emulation(folder: str, *options: str) -> Path:
    """The module's file. A compiler error fails the test with the compiler's words."""
    pybind11 = pytest.importorskip("pybind11", reason="pybind11 is not installed: the CUDA kernels are not run")
    scripts = sysconfig.get_path("scripts")
    cmake, ninja = (shutil.which(name, path=scripts) or shutil.which(name) for name in ("cmake", "ninja"))
    if cmake is None or ninja is None:
        pytest.skip("cmake or ninja is not installed: the CUDA kernels are not run")
    tree = ROOT / "build" / folder
    configure = [
        *(cmake, "-G", "Ninja", "-S", str(ROOT / "csrc" / "emulation"), "-B", str(tree)),
        *(f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}"),
        *(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", *options),
    ]
    for command in (configure, [cmake, "--build", str(tree), "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return next(tree.glob("mvit_emulation*.so"))


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("mvit_emulation", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def emulation() -> ModuleType:
    return load(build_emulation("emulation"))


@pytest.fixture(scope="session")
def sanitized_emulation() -> Path:
    """The module's file, built with AddressSanitizer and UndefinedBehaviorSanitizer; it needs a process of its own."""
    return build_emulation("emulation-sanitized", "-DMVIT_SANITIZE=ON")
