"""What the compiler makes of the kernels for GPUs that are not there.

Every kernel of every published model is `python -m mvit_kernels triton-report --all`. The suite compiles the layers
that take the most registers: many keys with a wide relative position, the widest of an image model, the narrow head of
MViTv2-L; and wide heads, which no published model has. In a process of its own, without the interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys, torch
from dataclasses import asdict, replace
from mvit_kernels.models import layer_shapes
from mvit_kernels.triton_kernels import aot, matrix
arch, model, block, head_dim, ops, dtype = sys.argv[1:]
layer = layer_shapes(model)[int(block)]
if int(head_dim):
    layer = replace(layer, att_dim=int(head_dim) * layer.heads)
for case in matrix.cases_of([layer], [getattr(torch, dtype)]):
    if case.op in ops.split(","):
        for report in aot.compile_launches(arch, matrix.launches(case)):
            more = {"faults": report.faults(), "per_unit": report.blocks_per_multiprocessor}
            print(json.dumps({**asdict(report), **more}))
"""

V2_S, V2_L, IMAGE, L_IMAGE = "mvit_v2_s_16x4", "mvit_v2_l_40x3", "mvit_v2_b", "mvit_v2_l"


@pytest.mark.parametrize(
    ("arch", "model", "block", "head_dim", "ops", "dtype"),
    [
        ("sm80", V2_S, 1, 0, "attention", "bfloat16"),
        ("sm90", V2_S, 1, 0, "pool,attention,rel_pos", "float16"),
        ("sm100", V2_S, 1, 0, "attention", "bfloat16"),
        ("sm120", V2_S, 1, 0, "pool,attention", "float16"),
        ("gfx9", V2_S, 1, 0, "pool,attention,rel_pos", "bfloat16"),
        ("sm90", IMAGE, 2, 0, "attention", "bfloat16"),
        ("sm80", V2_L, 2, 0, "attention", "float16"),
        ("sm100", L_IMAGE, 2, 0, "attention", "float16"),
        ("sm80", V2_S, 1, 0, "pool,attention,rel_pos", "float32"),
        ("sm120", V2_S, 1, 0, "attention", "float32"),
        ("sm120", V2_S, 1, 128, "attention", "bfloat16"),
    ],
)
def test_kernels_spill_nothing_fit_shared_memory_and_use_tensor_cores(arch, model, block, head_dim, ops, dtype) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SCRIPT, arch, model, str(block), str(head_dim), ops, dtype]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert {report["kernel"].partition("_")[0] for report in found} == {op.partition("_")[0] for op in ops.split(",")}
    for report in found:
        assert report["faults"] == [], report
        assert report["per_unit"] >= 1
        if dtype == "float32":  # IEEE products run on the ordinary units
            assert not report["tensor_core"], report


def report(**changes):
    aot = pytest.importorskip("mvit_kernels.triton_kernels.aot")
    values = {
        "kernel": "attention_forward", "arch": "sm90", "dtype": "float16", "registers": 200, "spills": 0,
        "shared": 1000, "threads": 256, "tensor_core": {"wgmma.mma_async": 4}, "async_copies": 2,
    }  # fmt: skip
    return aot.Report(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"spills": 8}, "8 B spilled"),
        ({"arch": "sm120", "shared": 100 * 1024, "tensor_core": {"mma.sync": 1}}, "102400 B shared memory"),
        ({"tensor_core": {}}, "no wgmma instruction"),
        ({"tensor_core": {"mma.sync": 3}}, "no wgmma instruction"),
        ({"kernel": "rel_pos_forward", "tensor_core": {}}, "no tensor-core instruction"),
        ({"kernel": "pool_forward", "tensor_core": {}}, None),
        ({"dtype": "float32", "tensor_core": {}}, None),
        ({"async_copies": 0}, "no asynchronous copies"),
        ({"arch": "gfx9", "tensor_core": {"v_mfma": 3}, "async_copies": 0}, None),
        ({"registers": 255, "threads": 512}, "255 registers: no program fits"),
    ],
)
def test_faults_name_what_must_not_be(changes: dict, fault: str | None) -> None:
    found = report(**changes).faults()
    assert (fault is None and not found) or any(fault in text for text in found), found


def test_the_summary_counts_instantiations_and_keeps_the_faults() -> None:
    matrix = pytest.importorskip("mvit_kernels.triton_kernels.matrix")
    case = next(case for case in matrix.cases() if case.op == "attention")
    parts = [matrix.Summary("attention_forward", "sm90") for _ in range(2)]
    parts[0].add(case, report())
    parts[1].add(case, report(registers=255, spills=16))
    (total,) = matrix.merged(parts)
    assert (total.count, total.registers, total.shared) == (2, (200, 255), 1000)
    assert total.faults == [f"attention_forward sm90 {case.title}: 16 B spilled"]
