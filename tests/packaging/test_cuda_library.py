"""Loading the CUDA library, and the words a user gets when that fails; the CPU library does not mind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mvit_kernels import _library

SOURCE = Path(__file__).resolve().parents[2] / "mvit_kernels" / "_library.py"
CUDA = torch.version.cuda or "13.0"


@pytest.fixture
def package(tmp_path: Path, built_project) -> Path:
    """A package folder with _library.py and a CPU library that loads."""
    shutil.copy(SOURCE, tmp_path)
    shutil.copytree(built_project.library_folder, tmp_path / "lib")
    return tmp_path


def cuda_error(package: Path, *, built_for: str = CUDA, torch_cuda: str | None = CUDA) -> str | None:
    """What the module says of the CUDA library, imported by a fresh Python."""
    (package / "lib" / "build_info.json").write_text(
        json.dumps({"cuda": {"built": True, "cuda": built_for, "architectures": ["80", "90"]}})
    )
    code = (
        f"import torch; torch.version.cuda = {torch_cuda!r}; import _library, json;"
        "print(json.dumps([_library.load_error(), _library.cuda_load_error(), _library.cuda_architectures()]))"
    )
    command, inherited = [sys.executable, "-c", code], dict(os.environ)
    result = subprocess.run(command, cwd=package, env=inherited, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    cpu, cuda, architectures = json.loads(result.stdout)
    assert cpu is None, "the CPU library loads whatever becomes of the other"
    assert architectures == ["80", "90"]
    return cuda


def put(package: Path, content: bytes = b"not a shared library") -> None:
    (package / "lib" / _library.CUDA_LIBRARY.name).write_bytes(content)


def test_without_a_build_the_reason_names_the_file(package: Path) -> None:
    assert cuda_error(package).startswith(f"the CUDA library was not built: no file {package}/lib/libmvit_kernels_cuda")


def test_a_torch_without_cuda_is_the_reason_and_nothing_is_loaded(package: Path) -> None:
    put(package)
    assert cuda_error(package, built_for="13.0", torch_cuda=None) == (
        f"the CUDA library is for torch with CUDA 13.0; torch {torch.__version__} was built without CUDA"
    )


def test_a_torch_of_another_cuda_is_the_reason(package: Path) -> None:
    put(package)
    assert cuda_error(package, built_for="13.0", torch_cuda="12.8") == (
        f"the CUDA library is for CUDA 13.0; torch {torch.__version__} was built for 12.8"
    )


def test_a_newer_minor_release_is_none(package: Path) -> None:
    put(package)
    assert "could not be loaded" in cuda_error(package, built_for="13.0", torch_cuda="13.2")


def test_a_library_that_does_not_load_gives_the_loaders_words(package: Path) -> None:
    put(package)
    error = cuda_error(package)
    assert error.startswith("the CUDA library could not be loaded: ") and "libmvit_kernels_cuda.so" in error


def test_a_library_of_other_schemas_is_a_reason(package: Path) -> None:
    # A library that registers ops of a name of its own: the other one, changed.
    content = (package / "lib" / _library.LIBRARY.name).read_bytes()
    put(package, content.replace(b"mvit_kernels_packaging_test", b"mvit_kernels_packaging_last"))
    assert cuda_error(package) is None
    source = package / "_library.py"
    source.write_text(
        source.read_text().replace("if interface != INTERFACE", 'if name == "CUDA" and interface != 1234')
    )
    assert "the CUDA library was built for other op schemas (interface" in cuda_error(package)
