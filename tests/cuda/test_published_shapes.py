"""The ops on every published layer shape on the CUDA backend: on a GPU where there is one; the emulation runs the
smallest, and says of the others what they need."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cuda.conftest import DEVICE
from tests.cuda.kernel_cases import DTYPES
from tests.ops import test_published_shapes as shared
from tests.ops.attention_cases import AttentionCase
from tests.ops.pool_cases import PoolCase

pytestmark = [pytest.mark.usefixtures("cuda_backend", "poisoned_memory")]

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cpu", reason="a published shape at full size needs an NVIDIA GPU: torch sees none"),
]


def smallest_here(cases: list[Any], here: int = 2) -> list[Any]:
    """The cases, from the smallest; those behind the first `here` are for a GPU."""
    return [pytest.param(case, marks=[] if i < here else NEEDS_GPU, id=str(case)) for i, case in enumerate(cases)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", smallest_here(shared.attention_cases()))
def test_attention_matches_float64(case: AttentionCase, dtype: torch.dtype) -> None:
    shared.check_attention(case, dtype, DEVICE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", smallest_here(shared.pool_cases()))
def test_pooling_matches_float64(case: PoolCase, dtype: torch.dtype) -> None:
    shared.check_pooling(case, dtype, DEVICE)
