"""The built library itself: one file for every Python, every torch from 2.10, every x86-64 or aarch64 CPU."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import wheel_rules

from mvit_kernels import _library

BUILD = Path(__file__).resolve().parents[2] / "build"


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def library(request) -> Path:
    file, error = {
        "cpu": (_library.LIBRARY, _library.load_error()),
        "cuda": (_library.CUDA_LIBRARY, _library.cuda_load_error()),
    }[request.param]
    if not file.exists():
        pytest.skip(error)
    assert error is None
    if shutil.which("nm") is None:
        pytest.skip("no nm to read the library with")
    return file


def test_levels_are_those_of_the_build():
    if not _library.LIBRARY.exists():
        pytest.skip(_library.load_error())
    assert list(_library.cpu_levels()) == _library.build_info()["cpu"]["levels"]
    assert _library.cpu_level() in _library.cpu_levels()


def test_imports_nothing_of_torch_but_its_stable_c_interface(library):
    names = wheel_rules.imports(library)
    assert wheel_rules.of_torch(names), "a library that registers ops needs torch"
    assert wheel_rules.foreign(names) == set()


def test_imports_nothing_of_python(library):
    assert wheel_rules.of_python(wheel_rules.imports(library, weak=True)) == set()


def test_links_by_name_alone(library):
    if shutil.which("readelf") is None:
        pytest.skip("no readelf to read the library with")
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu.so" in dynamic
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_runs_on_the_systems_that_manylinux_2_28_names(library):
    """glibc 2.28 and the libstdc++ of GCC 8; auditwheel has the last word when a wheel is built."""
    assert wheel_rules.too_new(wheel_rules.imports(library, weak=True)) == set()


def test_shows_no_function_but_those_that_python_looks_up(library):
    assert wheel_rules.exports(library) == wheel_rules.EXPORTS[library.name]


def test_no_function_is_shared_between_instruction_set_levels():
    """An inline function compiled at two levels is one function after linking: AVX-512 code on a CPU that has none."""
    if shutil.which("nm") is None:
        pytest.skip("no nm to read the library with")
    trees = sorted(BUILD.glob("cmake-*/libmvit_kernels_cpu.so"), key=lambda file: file.stat().st_mtime)
    if not trees:
        pytest.skip("no build tree beside the tests: the package was not built here")
    owners: dict[str, set[str]] = {}
    for target in (trees[-1].parent / "CMakeFiles").glob("*.dir"):
        for file in target.rglob("*.o"):
            for kind, name in wheel_rules.symbols(file, "--defined-only"):
                if kind == "W":
                    # Two targets, one set of flags.
                    owners.setdefault(name, set()).add(target.stem.replace("mvit_cpu_dispatch", "mvit_kernels_cpu"))
    assert {name: sorted(targets) for name, targets in owners.items() if len(targets) > 1} == {}
