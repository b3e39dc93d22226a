"""What a build leaves behind: where it can compile, and where it can't."""

import json
import os
import shutil
import subprocess

import pytest


def build_info(project) -> dict:
    return json.loads((project.library_folder / "build_info.json").read_text())


def library_exists(project) -> bool:
    return (project.library_folder / "libmvit_kernels_cpu.so").exists()


def test_build_info_names_compiler_levels_and_torch(built_project):
    info = build_info(built_project)
    assert info["version"] and (info["revision"], info["dirty"]) == (None, None)
    cpu = info["cpu"]
    assert cpu["built"] is True
    assert cpu["levels"][0] in ("baseline", "neon")
    assert cpu["torch_target"] == "2.10"
    assert all(cpu[key] for key in ("compiler", "target", "torch"))


def test_second_build_compiles_nothing(built_project):
    library = built_project.library_folder / "libmvit_kernels_cpu.so"
    before = library.stat()
    result = built_project.build_in_place()
    assert "no work to do" in result.stdout
    assert (library.stat().st_ino, library.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_without_a_compiler_the_install_goes_on_and_records_why(new_project):
    project = new_project()
    result = project.build_in_place(CXX="/nonexistent")
    assert result.returncode == 0, result.stderr
    reason = build_info(project)["cpu"]["reason"]
    assert build_info(project)["cpu"] == {"built": False, "reason": reason}
    assert "CMake" in reason and "/nonexistent" in reason and "\n" not in reason
    assert f"the C++ library was not built: {reason}" in result.stderr


def test_without_a_compiler_the_install_fails_when_cpp_is_required(new_project):
    project = new_project()
    result = project.build_in_place(CXX="/nonexistent", MVIT_KERNELS_REQUIRE_CPP="1")
    assert result.returncode != 0
    assert "error: the C++ library was not built: " in result.stderr
    assert "Traceback" not in result.stderr


def test_without_torch_the_reason_says_how_to_install(new_project):
    project = new_project()
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['setup.py', 'build_ext', '--inplace'];"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    result = project.run("-c", code)
    assert result.returncode == 0, result.stderr
    assert "--no-build-isolation" in build_info(project)["cpu"]["reason"]


def test_compile_error_is_the_reason_and_leaves_no_older_library(built_project, new_project):
    project = new_project()
    (project.folder / "csrc" / "cpu" / "answer.cpp").write_text("int answer() { return forty_two; }\n")
    project.library_folder.mkdir()
    (project.library_folder / "libmvit_kernels_cpu.so").write_text("of an earlier build")
    result = project.build_in_place()
    assert result.returncode == 0, result.stderr
    assert "answer.cpp:1" in build_info(project)["cpu"]["reason"]
    assert "forty_two" in build_info(project)["cpu"]["reason"]
    assert not library_exists(project)


AUDITED = """
import os, runpy, sys

def note(event, arguments):
    if event == "subprocess.Popen":
        events.write(f"{event} {os.path.basename(arguments[1][0])}\\n")
    elif event.startswith(("socket.", "urllib.", "os.system", "os.exec", "os.posix_spawn")):
        events.write(f"{event} {arguments}\\n")

events = open("events", "w", buffering=1)
sys.addaudithook(note)
sys.argv = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""


def test_the_build_opens_no_connection_and_runs_nothing_but_its_tools(built_project, tmp_path):
    for name in ("nvidia-smi", "curl", "wget"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/called\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = built_project.run("-c", AUDITED, PATH=path, MVIT_KERNELS_CUDA="auto")
    assert result.returncode == 0, result.stderr
    events = set((built_project.folder / "events").read_text().splitlines())
    assert "subprocess.Popen cmake" in events
    assert events <= {f"subprocess.Popen {name}" for name in ("cmake", "git", "nvcc")}
    assert not (tmp_path / "called").exists()


def test_max_jobs_that_is_no_number_is_an_error(new_project):
    result = new_project().build_in_place(MAX_JOBS="many")
    assert result.returncode != 0
    assert "MAX_JOBS 'many': a whole number from 1" in result.stderr


def test_build_info_has_the_commit_and_whether_the_tree_differs(new_project):
    if shutil.which("git") is None:
        pytest.skip("no git")
    project = new_project()

    def git(*arguments):
        settings = ("-c", "user.name=test", "-c", "user.email=test@example.invalid")
        command = ["git", *settings, *arguments]
        return subprocess.run(command, cwd=project.folder, capture_output=True, text=True, check=True).stdout.strip()

    def revision_and_dirty():
        project.build_in_place(CXX="/nonexistent")
        info = build_info(project)
        return info["revision"], info["dirty"]

    git("init", "--quiet")
    assert revision_and_dirty() == (None, None)
    git("add", "setup.py", "mvit_kernels/__init__.py")
    git("commit", "--quiet", "--message", "first")
    assert revision_and_dirty() == (git("rev-parse", "HEAD"), False)
    (project.folder / "setup.py").open("a").write("\n")
    assert revision_and_dirty() == (git("rev-parse", "HEAD"), True)
