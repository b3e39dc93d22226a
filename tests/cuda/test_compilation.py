"""What nvcc makes of the CUDA kernels, for a few of them: `python tools/cuda_resources.py` shows all."""

from __future__ import annotations

import collections
import importlib.util
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cuda.conftest import ROOT
from tests.cuda.layers import (
    ATTENTION_KERNELS,
    LAYERS,
    LEAST_SHARED_BYTES,
    attention_sizes,
    branches_of,
    grid_of_rel_pos,
)

spec = importlib.util.spec_from_file_location("cuda_resources", ROOT / "tools" / "cuda_resources.py")
assert spec is not None and spec.loader is not None
cuda_resources = importlib.util.module_from_spec(spec)
sys.modules["cuda_resources"] = cuda_resources
spec.loader.exec_module(cuda_resources)

compiles = pytest.mark.skipif(
    cuda_resources.missing_tools(compiles=True) is not None,
    reason=f"{cuda_resources.missing_tools(compiles=True)}: not installed, so the CUDA kernels are not compiled",
)

KERNELS = [
    "pooling_attention<bf16, 96, AttentionBias::product>",
    "pooling_attention<bf16, 96, AttentionBias::none>",
    "pooling_attention<f16, 80, AttentionBias::gather>",
    "pooled_query_attention<bf16, 96, AttentionBias::product>",
    "pooling_attention_float32<96, false, true>",
    "pooling_attention_float32<96, true, true>",
    "attention_combine<bf16>",
    "attention_grad_q<bf16, 96, true, false>",
    "attention_grad_q<bf16, 96, true, true>",
    "attention_grad_kv<bf16, 96, true>",
    "attention_grad_kv<f16, 128, true>",
    "attention_grad_q_float32<96, false, true, false>",
    "attention_grad_q_float32<96, true, true, true>",
    "attention_grad_kv_float32<96, true, true>",
    "attention_grad_sum<bf16>",
    "pool3d_norm<bf16>",
    "pool3d_norm_strips<bf16>",
    "pool3d_norm_backward_outputs<bf16>",
    "pool3d_norm_backward_output_strips<f32>",
    "pool3d_norm_backward_inputs<bf16>",
    "pool3d_norm_backward_input_strips<bf16>",
    "pool3d_norm_backward_weight_tiles<f32>",
    "pool3d_norm_backward_weight<f32>",
    "pool3d_norm_backward_parameters<bf16>",
    "decomposed_rel_pos<bf16>",
    "decomposed_rel_pos_backward_q<bf16>",
    "decomposed_rel_pos_backward_tables<bf16>",
    "decomposed_rel_pos_backward_sums<bf16>",
]
assert {kernel.partition("<")[0] for kernel in KERNELS} == set(cuda_resources.FAMILIES), "one of each, at least"


@compiles
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_stays_in_its_registers_and_uses_wide_loads_and_tensor_cores(kernel) -> None:
    """On sm_80, sm_90, sm_100 and sm_120."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        compiled = list(pool.map(lambda a: cuda_resources.compile_kernel(kernel, a), cuda_resources.ARCHITECTURES))
    for resources in compiled:
        assert resources.problems() == [], f"sm_{resources.architecture}"
        if kernel.startswith("pooling_attention<"):
            assert resources.loop["tensor"] >= resources.hmma / 2, "the main loop, and once more for the last tile"


def test_shared_memory_of_published_layers_is_what_the_budget_says(emulation) -> None:
    most = collections.Counter()
    for where, layer in LAYERS:
        sizes, grid_k = attention_sizes(layer, 1), grid_of_rel_pos(layer)
        for dtype, tf32 in ATTENTION_KERNELS:
            found = emulation.shared_bytes(
                *(dtype, tf32, sizes, grid_k, layer.has_cls, layer.pool_q is not None, branches_of(layer))
            )
            for kernel, size in found.items():
                budget = cuda_resources.FAMILIES[kernel].shared_kib << 10
                assert size <= budget <= LEAST_SHARED_BYTES, f"{where} {dtype}: {kernel}"
                most[kernel] = max(most[kernel], size)
    # No slack either: the budgets are the figures of docs/performance.md.
    for kernel, family in cuda_resources.FAMILIES.items():
        assert -(-most[kernel] >> 10) == family.shared_kib, f"{kernel}: {most[kernel]} bytes at most"


def test_head_dims_of_the_table_are_those_of_the_heuristics(emulation) -> None:
    assert emulation.attention_dims() == list(cuda_resources.ATTENTION_DIMS)
    cmake = (ROOT / "cmake" / "cuda_instantiations.cmake").read_text()
    assert f"MVIT_ATTENTION_DIMS {' '.join(map(str, emulation.attention_dims()))})" in cmake


@pytest.mark.parametrize(("head_dim", "dim"), [(8, 48), (48, 48), (64, 64), (72, 80), (96, 96), (104, 128), (129, 0)])
def test_head_dim_is_padded_to_the_next_compiled_one(emulation, head_dim, dim) -> None:
    assert emulation.attention_dim(head_dim) == dim
