"""What the CUDA library is built with: found in a fake torch and a fake toolkit, and the words where it is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import cuda_toolchain
from mvit_kernels import _library

NVCC = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release {release}, V{release}.88" ;;
--list-gpu-arch) printf 'compute_75\\ncompute_80\\ncompute_90\\ncompute_103\\n' ;;
*) echo "#$ TOP=$(dirname "$0")/.." >&2 ;;
esac
"""


def toolkit(home: Path, release: str = "13.0") -> Path:
    for name in (
        "include/cuda_runtime_api.h",
        "include/crt/host_config.h",
        f"lib/libcudart.so.{release.split('.')[0]}",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    (home / "bin").mkdir(exist_ok=True)
    (home / "bin" / "nvcc").write_text(NVCC.format(release=release))
    (home / "bin" / "nvcc").chmod(0o755)
    return home


@pytest.fixture
def torch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch for CUDA 13.0, and no nvcc anywhere."""
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "dirname").symlink_to(shutil.which("dirname") or "/usr/bin/dirname")
    monkeypatch.setenv("PATH", str(tools))
    folder = tmp_path / "site-packages" / "torch"
    folder.mkdir(parents=True)
    (folder / "version.py").write_text("from typing import Optional\ncuda: Optional[str] = '13.0'\n")
    return folder


def test_a_toolkit_in_cuda_home(torch_folder: Path, tmp_path: Path, monkeypatch) -> None:
    home = toolkit(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", str(home))
    found = cuda_toolchain.find_toolchain(torch_folder)
    assert (found.nvcc, found.version, found.release) == (home / "bin" / "nvcc", "13.0.88", "13.0")
    assert (found.include, found.runtime) == ((home / "include",), home / "lib" / "libcudart.so.13")
    assert found.architectures == ("80", "90", "90+PTX"), "those of the list that this nvcc knows"


def test_the_compiler_of_the_package_index_beside_torch(torch_folder: Path) -> None:
    home = toolkit(torch_folder.parent / "nvidia" / "cu13")
    (torch_folder.parent / "nvidia" / "cudnn" / "include").mkdir(parents=True)
    found = cuda_toolchain.find_toolchain(torch_folder)
    assert (found.nvcc, found.include) == (home / "bin" / "nvcc", (home / "include",))


def test_headers_and_runtime_may_be_beside_torch_where_nvcc_is_elsewhere(torch_folder, tmp_path, monkeypatch) -> None:
    home, beside = toolkit(tmp_path / "cuda"), toolkit(torch_folder.parent / "nvidia" / "cu13")
    shutil.rmtree(beside / "bin")
    shutil.rmtree(home / "lib")
    monkeypatch.setenv("CUDA_HOME", str(home))
    found = cuda_toolchain.find_toolchain(torch_folder)
    assert found.include == (home / "include", beside / "include")
    assert found.runtime == beside / "lib" / "libcudart.so.13"


def test_a_script_on_path_leads_to_its_toolkit(torch_folder: Path, tmp_path: Path) -> None:
    home, script = toolkit(tmp_path / "cuda"), tmp_path / "bin" / "nvcc"
    script.write_text(f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
    script.chmod(0o755)
    assert cuda_toolchain.find_toolchain(torch_folder).nvcc == home / "bin" / "nvcc"


def reason(torch_folder: Path) -> str:
    with pytest.raises(cuda_toolchain.NoToolchain) as error:
        cuda_toolchain.find_toolchain(torch_folder)
    return str(error.value)


def test_no_compiler_is_a_reason_that_says_what_to_install(torch_folder: Path) -> None:
    assert reason(torch_folder) == (
        "there is no nvcc in CUDA_HOME, on PATH or beside torch; pip install nvidia-cuda-nvcc"
    )


def test_a_wrong_cuda_home_is_a_reason(torch_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    assert reason(torch_folder) == "CUDA_HOME '/nonexistent' has no bin/nvcc"


def test_a_torch_without_cuda_is_a_reason(torch_folder: Path) -> None:
    (torch_folder / "version.py").write_text("cuda: Optional[str] = None\n")
    assert reason(torch_folder) == "the torch in the build environment was built without CUDA"


def test_another_major_release_than_torchs_is_a_reason(torch_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "cuda", "12.8")))
    assert reason(torch_folder).endswith("is of CUDA 12.8.88, torch was built for 13.0: one major release is right")


@pytest.mark.parametrize(("gone", "word"), [("include/crt", "crt/host_config.h"), ("lib", "libcudart.so.13")])
def test_a_part_that_is_missing_is_named(torch_folder: Path, tmp_path: Path, monkeypatch, gone: str, word: str) -> None:
    home = toolkit(tmp_path / "cuda")
    shutil.rmtree(home / gone)
    monkeypatch.setenv("CUDA_HOME", str(home))
    assert word in reason(torch_folder)


KNOWN = ["compute_75", "compute_80", "compute_90", "compute_120"]


@pytest.mark.parametrize(
    ("wished", "chosen"),
    [
        ("", ("80", "90", "120", "120+PTX")),
        ("8.0", ("80",)),
        ("8.0 9.0a;12.0+PTX", ("80", "90a", "120", "120+PTX")),
        ("9.0,9.0", ("90",)),
    ],
)
def test_architectures_are_those_wished_for(wished: str, chosen: tuple[str, ...]) -> None:
    assert cuda_toolchain.choose_architectures(KNOWN, wished) == chosen


@pytest.mark.parametrize(
    ("wished", "words"),
    [
        ("Ampere", "'Ampere' is no architecture like 8.0, 9.0a or 9.0+PTX"),
        ("8.0;13.5", "nvcc does not know 13.5"),
        ("7.5", "7.5 is too old, the kernels need 8.0"),
    ],
)
def test_a_wish_that_can_not_be_met_is_named(wished: str, words: str) -> None:
    with pytest.raises(cuda_toolchain.NoToolchain, match="TORCH_CUDA_ARCH_LIST") as error:
        cuda_toolchain.choose_architectures(KNOWN, wished)
    assert words in str(error.value)


def cuda_info(project) -> dict:
    return json.loads((project.library_folder / "build_info.json").read_text())["cuda"]


@pytest.mark.parametrize("setting", ["auto", ""])
def test_without_a_toolchain_the_cpu_library_is_built_and_the_reason_recorded(built_project, setting: str) -> None:
    (built_project.library_folder / _library.CUDA_LIBRARY.name).write_text("of an earlier build")
    result = built_project.build_in_place(MVIT_KERNELS_CUDA=setting, CUDA_HOME="/nonexistent")
    assert result.returncode == 0, result.stderr
    assert cuda_info(built_project)["built"] is False
    assert "the CUDA library was not built" in result.stderr
    assert (built_project.library_folder / _library.LIBRARY.name).exists()
    assert not (built_project.library_folder / _library.CUDA_LIBRARY.name).exists()


def test_without_a_toolchain_the_build_fails_where_cuda_is_required(built_project) -> None:
    result = built_project.build_in_place(MVIT_KERNELS_CUDA="require", CUDA_HOME="/nonexistent")
    assert result.returncode != 0
    assert "error: the CUDA library was not built: " in result.stderr and "Traceback" not in result.stderr


def test_cuda_that_is_off_is_not_tried(built_project) -> None:
    assert built_project.build_in_place(MVIT_KERNELS_CUDA="off", CUDA_HOME="/nonexistent").returncode == 0
    assert cuda_info(built_project) == {"built": False, "reason": "MVIT_KERNELS_CUDA was off"}


def test_another_setting_is_an_error(built_project) -> None:
    result = built_project.build_in_place(MVIT_KERNELS_CUDA="yes")
    assert result.returncode != 0 and "MVIT_KERNELS_CUDA 'yes': auto, require or off" in result.stderr
