"""A copy of the project's build, with a few lines of C++ in place of the kernels, so that a test can build it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mvit_kernels import _library

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))  # its scripts import each other by name

KERNEL = """
namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
int answer() { return 42; }
const char *file() { return __FILE__; } // as messages have it
}
"""

DISPATCH = """
#include <cstdlib>
#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT const char *mvit_kernels_cpu_level() { return std::getenv("MVIT_KERNELS_CPU_LEVEL") ? nullptr : "lowest"; }
EXPORT const char *mvit_kernels_cpu_levels() { return "lowest"; }
"""

BINDING = """
#include <torch/csrc/stable/library.h>
STABLE_TORCH_LIBRARY_FRAGMENT(mvit_kernels_packaging_test, m) { m.def("answer() -> int"); }
extern "C" __attribute__((visibility("default"))) int mvit_kernels_interface() { return INTERFACE; }
""".replace("INTERFACE", str(_library.INTERFACE))


class Project:
    """A source tree to build in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.library_folder = folder / "mvit_kernels" / "lib"

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs Python in the tree, with no setting of the build taken from outside."""
        settings = ("CXX", "CXXFLAGS", "LDFLAGS", "MAX_JOBS", "MVIT_KERNELS_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
        environment = {"MVIT_KERNELS_CUDA": "off", **environment}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**inherited, **environment},
            capture_output=True,
            text=True,
            timeout=600,
        )

    def build_in_place(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run("setup.py", "build_ext", "--inplace", **environment)

    def build_wheel(self, **environment: str) -> Path:
        return self._build("wheel", "whl", environment)

    def build_sdist(self, **environment: str) -> Path:
        return self._build("sdist", "tar.gz", environment)

    def _build(self, what: str, suffix: str, environment: dict[str, str]) -> Path:
        shutil.rmtree(self.folder / "dist", ignore_errors=True)
        result = self.run("-c", f"from setuptools import build_meta; build_meta.build_{what}('dist')", **environment)
        assert result.returncode == 0, result.stdout + result.stderr
        (built,) = (self.folder / "dist").glob(f"*.{suffix}")
        return built


@pytest.fixture(scope="session")
def new_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Project]:
    """A function that makes a new source tree."""
    pytest.importorskip("setuptools", minversion="77", reason="building needs setuptools 77 or newer")

    def make() -> Project:
        folder = tmp_path_factory.mktemp("project")
        for name in (
            "setup.py",
            "cuda_toolchain.py",
            "pyproject.toml",
            "MANIFEST.in",
            "CMakeLists.txt",
            "LICENSE",
            "README.md",
        ):
            if (ROOT / name).exists():
                shutil.copy(ROOT / name, folder)
        shutil.copytree(ROOT / "cmake", folder / "cmake")
        shutil.copytree(ROOT / "csrc" / "common", folder / "csrc" / "common")
        shutil.copytree(
            ROOT / "mvit_kernels", folder / "mvit_kernels", ignore=lambda _, names: {"lib", "__pycache__"} & {*names}
        )
        (folder / "tests").mkdir()
        (folder / "tests" / "test_nothing.py").touch()
        for name, text in {"cpu/answer": KERNEL, "cpu/dispatch": DISPATCH, "bindings/answer": BINDING}.items():
            source = folder / "csrc" / f"{name}.cpp"
            source.parent.mkdir(exist_ok=True)
            source.write_text(text)
        return Project(folder)

    return make


@pytest.fixture(scope="session")
def built_project(new_project: Callable[[], Project]) -> Project:
    """A source tree with the library built in place."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        pytest.skip("no C++ compiler")
    project = new_project()
    result = project.build_in_place(MVIT_KERNELS_REQUIRE_CPP="1")
    assert result.returncode == 0, result.stdout + result.stderr
    return project
