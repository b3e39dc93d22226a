"""The kernels from plain C++: the installed CMake package, and the examples that use it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

import cuda_toolchain

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, status: int = 0) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cmake() -> str:
    scripts = sysconfig.get_path("scripts")
    found = {name: shutil.which(name, path=scripts) or shutil.which(name) for name in ("cmake", "ninja")}
    if missing := [name for name, tool in found.items() if tool is None]:
        pytest.skip(f"{' and '.join(missing)} not installed: the C++ package is not built")
    return str(found["cmake"])


def build_examples(cmake: str, prefix: Path, tree: Path, *options: str) -> None:
    run(cmake, "-S", ROOT / "examples" / "cpp", "-B", tree, f"-DCMAKE_PREFIX_PATH={prefix}", *options)
    run(cmake, "--build", tree)


@pytest.fixture(scope="module")
def cpu_package(cmake: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the CPU kernels alone are installed."""
    trees = sorted((ROOT / "build").glob("cmake-*/build.ninja"), key=lambda file: file.stat().st_mtime)
    if not trees:
        pytest.skip("the library was not built here with CMake")
    tree, prefix = trees[-1].parent, tmp_path_factory.mktemp("prefix")
    run(cmake, "--build", tree, "--target", "mvit_kernels_cpu_static")
    run(cmake, "--install", tree, "--component", "cpp", "--prefix", prefix)
    return prefix


def test_the_example_builds_against_the_installed_package_without_torch_and_runs(cmake, cpu_package, tmp_path) -> None:
    build_examples(cmake, cpu_package, tmp_path)
    assert "largest error" in run(tmp_path / "attention")
    assert "torch" not in run("ldd", tmp_path / "attention")
    assert not (tmp_path / "attention_cuda").exists(), "the CUDA kernels are not in this package"


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("COMPONENTS cpu", None),
        ("COMPONENTS cuda", "this installation of mvit_kernels has no cuda kernels"),
        ("99.0", "99.0"),
    ],
)
def test_what_is_not_installed_is_not_found(cmake, cpu_package, tmp_path, wanted, reason) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.18)\nproject(user CXX)\nfind_package(mvit_kernels {wanted} REQUIRED)\n"
    )
    command = [cmake, "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={cpu_package}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == (reason is None)
    assert (reason or "") in " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def toolchain() -> cuda_toolchain.Toolchain:
    try:
        return cuda_toolchain.find_toolchain(Path(torch.__file__).parent)
    except cuda_toolchain.NoToolchain as reason:
        pytest.skip(f"the CUDA kernels are not compiled: {reason}")


def configure_cuda(cmake: str, toolchain: cuda_toolchain.Toolchain, source: Path, tree: Path) -> None:
    """As PTX alone, which the driver of a GPU compiles: the assembler takes most of nvcc's time."""
    settings = {
        "MVIT_TORCH": "OFF",
        "MVIT_NVCC": toolchain.nvcc,
        "MVIT_CUDA_INCLUDE": ";".join(map(str, toolchain.include)),
        "MVIT_CUDA_ARCHITECTURES": "80+PTX",
    }
    options = [f"-D{name}={value}" for name, value in settings.items()]
    run(cmake, "-G", "Ninja", "-S", source / "csrc" / "cuda", "-B", tree, *options)


def test_the_cuda_example_builds_against_the_installed_package_and_runs_where_there_is_a_gpu(
    cmake, toolchain, tmp_path
) -> None:
    tree, prefix, example = ROOT / "build" / "cuda-cpp", tmp_path / "prefix", tmp_path / "example"
    configure_cuda(cmake, toolchain, ROOT, tree)
    build = (cmake, "--build", tree, "--parallel", "2", "--target", "mvit_kernels_cuda_static")
    run(*build)
    assert "no work to do" in run(*build), "what has not changed is compiled again"
    run(cmake, "--install", tree, "--component", "cpp", "--prefix", prefix)
    build_examples(
        cmake, prefix, example, f"-DCUDAToolkit_ROOT={toolchain.nvcc.parents[1]}", f"-DCUDA_CUDART={toolchain.runtime}"
    )
    linked = run("ldd", example / "attention_cuda")
    assert "libcudart.so" in linked and "torch" not in linked
    if torch.cuda.is_available():
        assert "largest error" in run(example / "attention_cuda")
    else:
        assert re.fullmatch(r"no CUDA device: .+\n", run(example / "attention_cuda", status=77))


def test_the_same_sources_give_the_same_cuda_objects_in_any_folder(cmake, toolchain, tmp_path) -> None:
    objects = [f"objects/{name}.o" for name in ("launchers", "attention_grad_sum_f32")]
    found = []
    for folder in (tmp_path / "one", tmp_path / "the_other"):
        for name in ("csrc/common", "csrc/cuda", "cmake"):
            shutil.copytree(ROOT / name, folder / name)
        (folder / "mvit_kernels").mkdir()
        shutil.copy(ROOT / "mvit_kernels" / "__init__.py", folder / "mvit_kernels")
        tree = folder / "build" / folder.name
        configure_cuda(cmake, toolchain, folder, tree)
        run(cmake, "--build", tree, *(word for name in objects for word in ("--target", name)))
        found.append([(tree / name).read_bytes() for name in objects])
    assert found[0] == found[1]
