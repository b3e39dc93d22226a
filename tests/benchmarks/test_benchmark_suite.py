"""`pytest benchmarks/` as a process: what it writes, what it refuses, and that a wrong kernel gets no figure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mvit_kernels import backends, runs
from tests.runs.test_runs import row as row_of
from tests.runs.test_runs import run as run_of

ROOT = Path(__file__).parents[2]
CPU = "cpu" in backends.available()

pytest.importorskip("pytest_benchmark")


def suite(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "benchmarks", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_case_is_measured_in_every_implementation_and_compared(tmp_path):
    path, theirs, before = tmp_path / "run.json", tmp_path / "pytest_benchmark.json", tmp_path / "before.json"
    much_faster = row_of("cpu", 1000.0, level="op", part="block4.pooling_attention", threads=1, peak_extra_bytes=None)
    runs.save(run_of(much_faster), before)
    files = (f"--json={path}", f"--benchmark-json={theirs}", f"--compare={before}")
    done = suite("--quick", "-k", "op", "--rounds", "2", *files)
    assert done.returncode == (1 if CPU else 0), done.stdout + done.stderr
    worse = [line for line in done.stdout.splitlines() if line.startswith("WORSE")]
    assert len(worse) == CPU and all(
        "block4.pooling_attention forward float32, cpu: speed-up" in line for line in worse
    )
    run = runs.load(path)
    assert run.finished and run.machine["threads"] == 1 and run.peaks["copy"] > 1e8
    assert "--quick" in run.command and run.versions["torch"]
    rows = {row.peer: row for row in run.rows}
    assert list(rows) == ["eager", "sdpa", "cpu", "triton", "cuda"]
    measured = [row for row in run.rows if row.status == runs.MEASURED]
    assert [row.peer for row in measured] == ["eager", "sdpa"] + ["cpu"] * CPU
    for row in measured:
        assert len(row.samples) == 2 and row.seconds.median > 0 and row.error <= 1 and row.peak_extra_bytes > 1e5
    assert rows["cuda"].status == "unavailable" and rows["cuda"].reason
    assert f"unavailable: {rows['cuda'].reason}" in done.stdout
    assert "[1/1]" in done.stdout + done.stderr
    samples = {
        b["extra_info"]["implementation"]: b["stats"]["data"] for b in json.loads(theirs.read_text())["benchmarks"]
    }
    for row in measured:
        assert samples[row.peer] == pytest.approx(row.samples)


def test_a_file_that_is_no_run_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "other.json").write_text('{"benchmarks": []}')
    done = suite("--quick", f"--compare={tmp_path / 'other.json'}", f"--json={tmp_path / 'run.json'}")
    assert done.returncode == 4
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and "other.json: is JSON, but was not written by pytest benchmarks/" in lines[0]
    assert not (tmp_path / "run.json").exists()
