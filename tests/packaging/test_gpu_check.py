"""tools/gpu_check.sh: without a GPU one line and nothing done; its report, with every command by a stand-in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "gpu_check.sh"


def gpu_check(*arguments: str | Path, python: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": str(python), **environment}
    return subprocess.run([SCRIPT, *arguments], env=env, capture_output=True, text=True)


def test_without_a_gpu_it_is_one_line_and_nothing_is_done(tmp_path: Path) -> None:
    done = gpu_check(tmp_path / "report.txt", python=sys.executable, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 3
    assert done.stdout == "" and done.stderr.startswith("gpu_check: torch ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "report.txt").exists()


def test_an_environment_without_torch_is_one_line(tmp_path: Path) -> None:
    done = gpu_check(tmp_path / "report.txt", python=sys.executable, PYTHONPATH=str(hidden_torch(tmp_path)))
    assert done.returncode == 3
    assert done.stderr == "gpu_check: no torch here; PYTHON names the environment to use\n"


def hidden_torch(folder: Path) -> Path:
    (folder / "torch.py").write_text("raise ImportError('no torch here')\n")
    return folder


def test_a_wrong_call_says_how(tmp_path: Path) -> None:
    done = gpu_check("--help", python=sys.executable)
    assert (done.returncode, done.stderr) == (2, "usage: tools/gpu_check.sh [REPORT]\n")


PYTHON = """#!/bin/sh
case "$*" in
-c*) echo 9.0 ;;
*FAILING*) echo "a failure" && exit 1 ;;
*) echo "ran $* for $TORCH_CUDA_ARCH_LIST with $MVIT_KERNELS_CUDA" ;;
esac
"""


@pytest.mark.parametrize("failing", ["nothing", "tests/cuda"])
def test_the_report_has_every_step_and_the_status_says_whether_one_failed(tmp_path: Path, failing: str) -> None:
    python, report = tmp_path / "python", tmp_path / "report.txt"
    python.write_text(PYTHON.replace("FAILING", failing))
    python.chmod(0o755)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "compute-sanitizer").write_text('#!/bin/sh\necho "sanitized $2"\n')
    (tools / "compute-sanitizer").chmod(0o755)
    done = gpu_check(report, python=python, PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == (failing != "nothing")
    text = report.read_text()
    for step in (
        "build",
        "info",
        "tests of the CUDA backend",
        "all tests",
        "compute-sanitizer racecheck",
        "benchmarks",
    ):
        assert f"\n== {step}\n$ " in text
    assert "ran setup.py --quiet build_ext --inplace for 9.0 with require" in text
    assert f"--json {tmp_path}/report.json" in text
    summary = text.partition("== summary\n")[2]
    assert summary.count("\n") == 8
    assert ("FAILED 1" in summary) == (failing != "nothing")
