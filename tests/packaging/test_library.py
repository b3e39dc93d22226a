"""Loading the library, and the words a user gets when that fails."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mvit_kernels import _library

SOURCE = Path(__file__).resolve().parents[2] / "mvit_kernels" / "_library.py"


@pytest.fixture
def package(tmp_path):
    """A package folder that has _library.py and an empty lib/."""
    shutil.copy(SOURCE, tmp_path)
    (tmp_path / "lib").mkdir()
    return tmp_path


def imported_from(package, **environment: str) -> SimpleNamespace:
    """What the module says, imported by a fresh Python: a process can load a library and register its ops only once."""
    code = (
        "import _library, json; names = ('load_error', 'cpu_level', 'cpu_levels', 'build_info');"
        "print(json.dumps({name: getattr(_library, name)() for name in names}))"
    )
    inherited = {name: value for name, value in os.environ.items() if name != "MVIT_KERNELS_CPU_LEVEL"}
    command, variables = [sys.executable, "-c", code], {**inherited, **environment}
    result = subprocess.run(command, cwd=package, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return SimpleNamespace(**json.loads(result.stdout))


def test_without_a_build_the_reason_names_the_file_and_the_command(package):
    library = imported_from(package)
    assert library.load_error == (
        f"the C++ library was not built: no file {package}/lib/libmvit_kernels_cpu.so; "
        "run pip install --no-build-isolation -e ."
    )
    assert (library.cpu_level, library.cpu_levels, library.build_info) == (None, [], {})


def test_a_failed_build_gives_its_recorded_reason(package):
    info = {"version": "0.1.0", "cpu": {"built": False, "reason": "cmake is not in the build environment"}}
    (package / "lib" / "build_info.json").write_text(json.dumps(info))
    library = imported_from(package)
    assert library.load_error == "the C++ library was not built: cmake is not in the build environment"
    assert library.build_info == info


def test_a_corrupt_library_gives_the_loaders_own_words(package):
    (package / "lib" / "libmvit_kernels_cpu.so").write_bytes(b"not a shared library" * 100)
    error = imported_from(package).load_error
    assert error.startswith("the C++ library could not be loaded: ")
    assert "libmvit_kernels_cpu.so" in error.removeprefix("the C++ library could not be loaded: ")


def test_a_library_without_the_entries_is_not_taken_for_loaded(package, built_project):
    # The name of an entry in the string table, changed: as in a library of another version.
    content = (built_project.library_folder / "libmvit_kernels_cpu.so").read_bytes()
    assert b"mvit_kernels_cpu_levels" in content
    changed = content.replace(b"mvit_kernels_cpu_levels", b"mvit_kernels_cpu_others")
    (package / "lib" / "libmvit_kernels_cpu.so").write_bytes(changed)
    library = imported_from(package)
    assert "mvit_kernels_cpu_levels" in library.load_error
    assert library.cpu_level is None


def test_a_library_of_other_schemas_is_a_reason_and_not_called(package, built_project):
    shutil.copytree(built_project.library_folder, package / "lib", dirs_exist_ok=True)
    source = package / "_library.py"
    source.write_text(source.read_text().replace(f"INTERFACE = {_library.INTERFACE}", "INTERFACE = 1234"))
    library = imported_from(package)
    assert f"was built for other op schemas (interface {_library.INTERFACE}, 1234 is right)" in library.load_error
    assert library.cpu_level is None


SCHEMAS = {4: "8f7164f6f18b6824"}
"""Per interface number the digest of all schemas. A changed schema takes the next number."""


def test_a_changed_schema_has_a_new_interface_number():
    import mvit_kernels  # noqa: F401  defines the ops

    found = [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("mvit_kernels::")]
    text = "\n".join(sorted(map(str, found)))
    assert {_library.INTERFACE: hashlib.sha256(text.encode()).hexdigest()[:16]} == SCHEMAS, text


def test_a_corrupt_build_info_is_as_none(package):
    (package / "lib" / "build_info.json").write_text("{")
    assert imported_from(package).build_info == {}


def test_a_good_library_loads(package, built_project):
    shutil.copytree(built_project.library_folder, package / "lib", dirs_exist_ok=True)
    library = imported_from(package)
    assert library.load_error is None
    assert (library.cpu_level, library.cpu_levels) == ("lowest", ["lowest"])


def test_a_level_that_can_not_be_used_is_named_with_those_that_are_built_in(package, built_project):
    shutil.copytree(built_project.library_folder, package / "lib", dirs_exist_ok=True)
    library = imported_from(package, MVIT_KERNELS_CPU_LEVEL="sse9")
    assert library.load_error == "MVIT_KERNELS_CPU_LEVEL 'sse9': one of lowest that this CPU supports"
    assert (library.cpu_level, library.cpu_levels) == (None, [])
