"""Every instruction-set level below the CPU's own, each in a process that is told to use no higher one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mvit_kernels import _library

ROOT = Path(__file__).parent.parent.parent

REPRESENTATIVE = [
    "tests/ops/test_pooling_attention.py::test_attention_matches_float64_on_odd_shapes",
    "tests/ops/test_pooling_attention.py::test_attention_matches_float64_at_every_tail_of_a_key_tile",
    "tests/cpu/test_exactness.py",
    "tests/ops/test_pool3d_norm.py::test_pooling_matches_float64_on_odd_shapes",
    "tests/ops/test_decomposed_rel_pos.py::test_rows_match_float64",
    "tests/ops/test_linear.py::test_float32_parameters_and_residual_of_a_half_projection",
    "tests/ops/test_linear.py::test_linear_reads_strided_rows_and_transposed_weights",
    "tests/ops/test_linear.py::test_gelu_is_as_exact_as_eager_at_every_magnitude",
    "tests/ops/test_norm_mlp.py::test_the_same_bits_as_the_ops_one_after_the_other",
    "tests/ops/test_autograd.py::test_gradients_match_float64",
    "tests/ops/test_backward.py::test_attention_gradients_match_float64_at_every_tail_of_a_panel",
    "tests/ops/test_backward.py::test_the_same_gradients_come_out_again_bit_for_bit",
]
"""Forward and backward of every op in every dtype, with head dims and key counts that end inside a vector."""


def lower_levels() -> list[str]:
    """The levels built in that lie below the one in use: those this CPU runs too."""
    built, own = _library.cpu_levels(), _library.cpu_level()
    return built[: built.index(own)] if own in built else []


def run_at(level: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MVIT_KERNELS_CPU_LEVEL": level, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("level", lower_levels())
def test_ops_keep_the_numerics_rule_at_a_lower_level(level: str) -> None:
    used = run_at(level, "-c", "from mvit_kernels import _library; print(_library.cpu_level())")
    assert used.stdout.strip() == level, used.stderr
    tests = run_at(level, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *REPRESENTATIVE)
    assert tests.returncode == 0, tests.stdout[-4000:] + tests.stderr[-1000:]
    assert " passed" in tests.stdout and "skipped" not in tests.stdout.splitlines()[-1]


def test_an_unknown_level_is_an_error_that_names_the_levels_there_are() -> None:
    code = """
import torch
from mvit_kernels import ops, use_backend
x = torch.randn(1, 1, 4, 8)
with use_backend("cpu"):
    ops.pooling_attention(x, x, x)
"""
    failed = run_at("sse9", "-c", code)
    assert failed.returncode != 0
    error = failed.stderr.splitlines()[-1]
    assert "MVIT_KERNELS_CPU_LEVEL 'sse9'" in error and ",".join(_library.cpu_levels()) in error
