"""What the compiler makes of the kernels for GPUs that are not there.

The whole matrix is `python -m mvit_kernels triton-report`.

The suite compiles one layer of MViTv2-S with Nk = 393 per architecture, in a process without the interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys, torch
from dataclasses import asdict
from mvit_kernels.models import layer_shapes
from mvit_kernels.triton_kernels import aot, matrix
arch, ops = sys.argv[1], sys.argv[2].split(",")
layer = next(layer for layer in layer_shapes("mvit_v2_s_16x4") if layer.num_kv == 393 and layer.num_q > 393)
for case in matrix.cases_of([layer], [getattr(torch, sys.argv[3])]):
    if case.op in ops:
        for report in aot.compile_launches(arch, matrix.launches(case)):
            more = {"limit": aot.SHARED_LIMIT[arch], "resident": report.blocks_per_multiprocessor}
            print(json.dumps({**asdict(report), **more}))
"""

MATRIX_KERNELS = {
    "attention_forward", "attention_grad_q", "attention_grad_kv",
    "rel_pos_forward", "rel_pos_grad_q", "rel_pos_grad_table",
}  # fmt: skip
TENSOR_CORE = {
    "sm80": "mma.sync",
    "sm90": "wgmma.mma_async",
    "sm100": "tcgen05.mma",
    "sm120": "mma.sync",
    "gfx9": "v_mfma",
}


def reports(arch: str, ops: str, dtype: str) -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, arch, ops, dtype], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("arch", "ops", "dtype"),
    [
        ("sm90", "pool,attention,rel_pos", "float16"),
        ("sm80", "attention", "bfloat16"),
        ("sm100", "attention", "bfloat16"),
        ("sm120", "attention", "float16"),
        ("gfx9", "attention", "bfloat16"),
        ("sm80", "pool,attention,rel_pos", "float32"),
        ("sm90", "pool,attention,rel_pos", "float32"),
        ("sm120", "attention", "float32"),
    ],
)
def test_kernels_spill_nothing_fit_shared_memory_and_use_tensor_cores(arch: str, ops: str, dtype: str) -> None:
    found = reports(arch, ops, dtype)
    assert len(found) >= 3
    for report in found:
        kernel = report["kernel"]
        assert report["spills"] == 0, report
        assert report["shared"] <= report["limit"], report
        assert report["resident"] >= 1, report
        if dtype == "float32":  # IEEE products run on the ordinary units
            assert not report["tensor_core"], report
        elif kernel in MATRIX_KERNELS:
            assert sum(report["tensor_core"].values()) > 0, report
        if kernel == "attention_forward" and dtype != "float32":
            assert TENSOR_CORE[arch] in report["tensor_core"], report
            assert report["async_copies"] > 0 or arch == "gfx9", report
