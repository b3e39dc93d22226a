"""`pytest benchmarks/` measures what it says, and gives no figure for a kernel that is wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mvit_kernels import backends

ROOT = Path(__file__).parents[2]
KERNELS = [name for name in backends.available() if name != "eager"]
SMALLEST = "mvit_v1_b_16x4.blocks.15"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pytest_benchmark") is None, reason="pytest-benchmark is not installed"
)


def run(folder: Path, *arguments: str) -> tuple[int, str, list[dict[str, Any]], dict[str, Any]]:
    """Exit status, output, and from the JSON the measured cases and the machine."""
    out = folder / "out.json"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "benchmarks", "-k", SMALLEST]
    command += ["--rounds", "1", f"--benchmark-json={out}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    found = json.loads(out.read_text())
    return done.returncode, done.stdout + done.stderr, found["benchmarks"], found["machine_info"]


def test_every_implementation_of_a_layer_is_measured_and_compared(tmp_path):
    status, output, cases, machine = run(tmp_path, "--backward")
    assert status == 0, output
    implementations = ["eager", "sdpa", *KERNELS]
    assert [case["extra_info"]["implementation"] for case in cases] == implementations * 2
    forward, backward = {case["group"] for case in cases}
    assert {forward, backward} == {min(forward, backward, key=len), min(forward, backward, key=len) + " + backward"}
    for case in cases:
        assert case["stats"]["median"] > 0
        assert case["extra_info"]["peak_extra_mib"] > 1
    assert machine["mvit_kernels"]["threads"] == 1
    assert "speed-up" in output


@pytest.mark.skipif(not KERNELS, reason="no backend with kernels can run here")
@pytest.mark.parametrize("arguments", [(), ("--backward",)])
def test_a_wrong_kernel_gets_no_figure(tmp_path, arguments):
    (tmp_path / "wrong_kernel.py").write_text(
        "from mvit_kernels import backends\n"
        f"backend = backends.get({KERNELS[0]!r})\n"
        "right = backend.pooling_attention\n"
        "def wrong(*args, **options):\n"
        "    out, lse = right(*args, **options)\n"
        "    return out * 1.0001, lse\n"
        "backend.pooling_attention = wrong\n"
    )
    status, output, cases, _ = run(tmp_path, "-p", "wrong_kernel", *arguments)
    assert status == 1
    assert "not timed, the output is wrong: max error" in output
    assert KERNELS[0] not in {case["extra_info"]["implementation"] for case in cases}
