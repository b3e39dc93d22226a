"""`tune` and `triton-report`: with a fake timer and a fake compiler, and the table of one real layer."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mvit_kernels import backends
from mvit_kernels.cli import main, triton_report
from mvit_kernels.models import layer_shapes
from mvit_kernels.triton_kernels import device, launch, matrix, tuned, tuning
from mvit_kernels.triton_kernels.launch import Launch
from tests.triton.conftest import DEVICE


def test_tune_writes_the_fastest_launch_of_every_kernel_and_key_count(table, monkeypatch, capsys) -> None:
    fastest = {"forward": Launch(64, 32, 4, 3), "grad_q": Launch(32, 32, 4, 1), "grad_kv": Launch(32, 64, 8, 2)}

    def timer(layer, dtype, batch):
        assert (dtype, batch) == (torch.bfloat16, 4)
        return lambda key, choice: 1e-6 if choice == fastest[key.kernel] else 1e-3

    monkeypatch.setattr(backends.get("triton"), "unavailable", lambda: None)
    monkeypatch.setattr(device, "device_family", lambda _: "sm90")
    monkeypatch.setattr(matrix, "timer", timer)
    assert main(["tune", "--model", "mvit_v2_s_16x4", "--dtype", "bfloat16", "--batch", "4"]) == 0
    assert f"written: {table}" in capsys.readouterr().out
    for keys in (393, 1569):
        for kernel in tuning.KERNELS:
            assert launch.matrix_kernel(kernel, "sm90", torch.bfloat16, 96, keys) == fastest[kernel]
            assert launch.matrix_kernel(kernel, "sm80", torch.bfloat16, 96, keys) != fastest[kernel]
    assert len(tuned.rows()) == 6


def test_tune_says_which_kernels_no_launch_runs(table, monkeypatch, capsys) -> None:
    def broken(key, choice):
        if key.kernel == "grad_kv":
            raise RuntimeError("out of resource: registers")
        return 1e-6

    monkeypatch.setattr(backends.get("triton"), "unavailable", lambda: None)
    monkeypatch.setattr(device, "device_family", lambda _: "sm120")
    monkeypatch.setattr(matrix, "timer", lambda *_: broken)
    assert main(["tune"]) == 0
    assert "grad_kv D 96 Nk 393: no candidate runs on this GPU" in capsys.readouterr().out
    assert {row[1] for row in tuned.rows()} == {"forward", "grad_q"}


@pytest.mark.skipif(DEVICE == "cuda", reason="this machine has a GPU")
def test_tune_without_a_gpu_measures_nothing(table, monkeypatch, capsys) -> None:
    monkeypatch.setattr(backends.get("triton"), "unavailable", lambda: "torch sees no CUDA or HIP GPU on this machine")
    assert main(["tune"]) == 2
    assert "tune: torch sees no CUDA or HIP GPU on this machine" in capsys.readouterr().err
    assert not table.exists()


@pytest.mark.parametrize("spills", [0, 16])
def test_the_whole_report_ends_with_status_1_at_a_fault(spills: int, monkeypatch, capsys) -> None:
    aot = pytest.importorskip("mvit_kernels.triton_kernels.aot")

    def summarise(arch, dtype, models):
        found = matrix.Summary("attention_grad_q", arch)
        case = matrix.cases_of(layer_shapes("mvit_v2_s_16x4")[:1], [dtype])[1]
        found.add(case, aot.Report("attention_grad_q", arch, "float16", 200, spills, 1000, 128, {"mma.sync": 4}))
        return [found]

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_report, "ProcessPoolExecutor", lambda jobs, _: ThreadPoolExecutor(jobs))
    monkeypatch.setattr(matrix, "summarise", summarise)
    status = main(["triton-report", "--all", "--arch", "sm80", "--dtype", "float16", "--jobs", "1"])
    out = capsys.readouterr().out
    assert status == (1 if spills else 0)
    assert ("attention_grad_q sm80 D 96 Nk 393 float16: 16 B spilled" in out) == bool(spills)
    assert f"1 kernels, {1 if spills else 0} faults" in out


def test_the_report_of_a_layer_is_a_table_with_a_row_for_each_kernel() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = "-m mvit_kernels triton-report --model mvit_v1_b_16x4 --block 1 --op pool --arch sm80 --dtype float16"
    result = subprocess.run(
        [sys.executable, *command.split()], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    header, *rows = [tuple(line.split(" | ")) for line in result.stdout.splitlines()]
    assert header == matrix.HEADER
    assert {row[0] for row in rows} == {"pool_forward", "pool_grad_outputs", "pool_grad_inputs", "pool_grad_weight"}
    for row in rows:
        values = dict(zip(header, row, strict=True))
        assert values["arch"] == "sm80" and values["spilled B"] == "0"
        assert 0 < int(values["registers"]) <= 255 and int(values["per SM"]) >= 1
