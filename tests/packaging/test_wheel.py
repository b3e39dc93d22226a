"""The wheel's name and what is in it."""

import json
import tarfile
import zipfile

import pytest
import wheel_rules

from tests.packaging.conftest import Project


@pytest.fixture(scope="module")
def wheel(built_project):
    return built_project.build_wheel(MVIT_KERNELS_REQUIRE_CPP="1")


def files_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_tag_is_any_python_on_this_platform(wheel):
    python, abi, platform = wheel.stem.split("-")[2:]
    assert (python, abi) == ("py3", "none")
    assert platform != "any"


def test_holds_the_library_and_the_type_marker(wheel):
    wanted = {"lib/libmvit_kernels_cpu.so", "lib/build_info.json", "py.typed", "_library.py"}
    assert {f"mvit_kernels/{name}" for name in wanted} <= files_in(wheel)


def test_holds_no_tests_and_no_sources(wheel):
    wheel_rules.check_contents(files_in(wheel))


def test_without_a_compiler_is_pure_python_and_takes_no_library_from_the_source_tree(new_project):
    project = new_project()
    project.library_folder.mkdir()
    (project.library_folder / "libmvit_kernels_cpu.so").write_text("of an earlier build")
    wheel = project.build_wheel(CXX="/nonexistent")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "mvit_kernels/lib/build_info.json" in files_in(wheel)
    assert not [name for name in files_in(wheel) if name.endswith(".so")]


def test_a_local_version_is_part_of_the_name_and_of_build_info(built_project):
    wheel = built_project.build_wheel(MVIT_KERNELS_REQUIRE_CPP="1", MVIT_KERNELS_LOCAL_VERSION="cu130")
    public, plus, local = wheel.name.split("-")[1].partition("+")
    assert (plus, local) == ("+", "cu130")
    with zipfile.ZipFile(wheel) as archive:
        assert json.loads(archive.read("mvit_kernels/lib/build_info.json"))["version"] == f"{public}+cu130"


def test_a_local_version_that_is_none_is_an_error(new_project):
    result = new_project().build_in_place(MVIT_KERNELS_LOCAL_VERSION="CUDA 13")
    assert result.returncode != 0
    assert result.stderr.startswith("MVIT_KERNELS_LOCAL_VERSION 'CUDA 13': lower-case letters, digits and dots")


def test_the_same_sources_give_the_same_bytes_in_any_folder(built_project, new_project):
    first, second = (
        project.build_wheel(MVIT_KERNELS_REQUIRE_CPP="1", SOURCE_DATE_EPOCH="1700000000").read_bytes()
        for project in (built_project, new_project())
    )
    assert first == second


def test_a_source_distribution_builds_and_remembers_the_commit(new_project, tmp_path):
    project = new_project()
    revision = {"revision": "abc123", "dirty": False}
    (project.folder / "revision.json").write_text(json.dumps(revision))
    sdist = project.build_sdist()
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    assert {"CMakeLists.txt", "setup.py", "cmake/cpu_levels.cmake", "csrc/cpu/dispatch.cpp"} <= names
    assert not [name for name in names if name.startswith(("tests/", "mvit_kernels/lib/"))]
    (unpacked,) = tmp_path.iterdir()
    wheel = Project(unpacked).build_wheel(MVIT_KERNELS_REQUIRE_CPP="1")
    wheel_rules.check_contents(files_in(wheel))
    with zipfile.ZipFile(wheel) as archive:
        info = json.loads(archive.read("mvit_kernels/lib/build_info.json"))
    assert info["cpu"]["built"] and revision.items() <= info.items()
