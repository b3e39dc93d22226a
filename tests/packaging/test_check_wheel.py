"""tools/check_wheel.py: what it asks of the CUDA library beside each torch."""

from __future__ import annotations

import check_wheel
import pytest

CPU, CU130 = (f"mvit_kernels-0.1.0+{local}-py3-none-manylinux_2_28_x86_64.whl" for local in ("cpu", "cu130"))


@pytest.mark.parametrize(
    ("wheel", "torch_cuda", "error"),
    [
        (CPU, "13.0", "the CUDA library was not built: MVIT_KERNELS_CUDA was off"),
        (CU130, "13.0", None),
        (CU130, "13.2", None),
        (CU130, None, "the CUDA library is for torch with CUDA 13.0; torch 2.13.0+cpu was built without CUDA"),
        (CU130, "12.8", "the CUDA library is for CUDA 13.0; torch 2.13.0 was built for 12.8"),
    ],
)
def test_a_cuda_library_loads_beside_its_torch_and_says_why_not_beside_others(wheel, torch_cuda, error) -> None:
    check_wheel.check_cuda(wheel, torch_cuda, error)


@pytest.mark.parametrize(
    ("wheel", "torch_cuda", "error"),
    [
        (CPU, "13.0", None),
        (CU130, "13.0", "the CUDA library could not be loaded: undefined symbol"),
        (CU130, "13.0", "the CUDA library was not built: no nvcc"),
        (CU130, None, None),
        (CU130, None, "the CUDA library could not be loaded: libtorch_cuda.so"),
    ],
)
def test_anything_else_fails_the_check(wheel, torch_cuda, error) -> None:
    with pytest.raises(check_wheel.CheckError, match=error or "loaded"):
        check_wheel.check_cuda(wheel, torch_cuda, error)
