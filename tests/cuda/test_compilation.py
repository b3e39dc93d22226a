"""What nvcc makes of the CUDA kernels, for a few of them: `python tools/cuda_resources.py` shows all."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from tests.cuda.conftest import ROOT

spec = importlib.util.spec_from_file_location("cuda_resources", ROOT / "tools" / "cuda_resources.py")
assert spec is not None and spec.loader is not None
cuda_resources = importlib.util.module_from_spec(spec)
sys.modules["cuda_resources"] = cuda_resources
spec.loader.exec_module(cuda_resources)

pytestmark = pytest.mark.skipif(
    cuda_resources.find_nvcc() is None or cuda_resources.find_nvdisasm() is None,
    reason="nvcc or nvdisasm is not installed: the CUDA kernels are not compiled",
)


@pytest.mark.parametrize("architecture", ["80", "120"])
@pytest.mark.parametrize(
    "kernel",
    [
        "pooling_attention<bf16, 96, AttentionBias::product>",
        "pooling_attention<bf16, 96, AttentionBias::none>",
        "pooling_attention<f16, 80, AttentionBias::gather>",
        "pooled_query_attention<bf16, 96, AttentionBias::product>",
        "pooling_attention_float32<96, true>",
        "pooling_attention_tf32<96, true>",
        "attention_combine<bf16>",
        "attention_grad_q<bf16, 96, true>",
        "attention_grad_kv<bf16, 96, true>",
        "attention_grad_kv<f16, 128, true>",
        "attention_grad_q_float32<96, false, true>",
        "attention_grad_kv_float32<96, true, true>",
        "pool3d_norm<bf16>",
        "pool3d_norm<f32>",
        "pool3d_norm_strips<bf16>",
        "decomposed_rel_pos<bf16>",
        "pool3d_norm_backward_outputs<bf16>",
        "pool3d_norm_backward_inputs<bf16>",
        "pool3d_norm_backward_weight<f32>",
        "pool3d_norm_backward_parameters<bf16>",
        "decomposed_rel_pos_backward_q<bf16>",
        "decomposed_rel_pos_backward_tables<bf16>",
    ],
)
def test_kernel_stays_in_its_registers_and_uses_wide_loads_and_tensor_cores(kernel, architecture) -> None:
    resources = cuda_resources.compile_kernel(kernel, architecture, cuda_resources.KERNELS[kernel])
    assert resources.problems() == []
    if kernel.startswith("pooling_attention<"):
        assert resources.loop["tensor"] >= resources.hmma / 2, "the main loop, and once more for the last tile"


def test_head_dims_of_the_table_are_those_of_the_heuristics(emulation) -> None:
    assert emulation.attention_dims() == list(cuda_resources.ATTENTION_REGISTERS)
    cmake = (ROOT / "cmake" / "cuda_instantiations.cmake").read_text()
    assert f"MVIT_ATTENTION_DIMS {' '.join(map(str, emulation.attention_dims()))})" in cmake


@pytest.mark.parametrize(("head_dim", "dim"), [(8, 48), (48, 48), (64, 64), (72, 80), (96, 96), (104, 128), (129, 0)])
def test_head_dim_is_padded_to_the_next_compiled_one(emulation, head_dim, dim) -> None:
    assert emulation.attention_dim(head_dim) == dim
