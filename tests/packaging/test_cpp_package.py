"""The kernels from plain C++: the installed CMake package, and the example that uses it."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_example_builds_against_the_installed_package_without_torch_and_runs(tmp_path) -> None:
    cmake = shutil.which("cmake", path=sysconfig.get_path("scripts")) or shutil.which("cmake")
    trees = sorted((ROOT / "build").glob("cmake-*/build.ninja"), key=lambda file: file.stat().st_mtime)
    if cmake is None or not trees:
        pytest.skip("the library was not built here with CMake")
    tree, prefix, example = trees[-1].parent, tmp_path / "prefix", tmp_path / "example"
    run(cmake, "--build", tree, "--target", "mvit_kernels_static")
    run(cmake, "--install", tree, "--component", "cpp", "--prefix", prefix)
    run(cmake, "-S", ROOT / "examples" / "cpp", "-B", example, f"-DCMAKE_PREFIX_PATH={prefix}")
    run(cmake, "--build", example)
    assert "largest error" in run(example / "attention")
    assert "torch" not in run("ldd", example / "attention")
