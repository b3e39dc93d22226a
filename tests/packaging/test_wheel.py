"""The wheel's name and what is in it."""

import zipfile

import pytest


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
    files = files_in(wheel)
    assert {name.split("/")[0].split("-")[0] for name in files} == {"mvit_kernels"}  # the package and its dist-info
    assert not [name for name in files if name.endswith((".cpp", ".h", ".cmake", ".o", ".ninja"))]


def test_without_a_compiler_is_pure_python_and_takes_no_library_from_the_source_tree(new_project):
    project = new_project()
    project.library_folder.mkdir()
    (project.library_folder / "libmvit_kernels_cpu.so").write_text("of an earlier build")
    wheel = project.build_wheel(CXX="/nonexistent")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert "mvit_kernels/lib/build_info.json" in files_in(wheel)
    assert not [name for name in files_in(wheel) if name.endswith(".so")]
