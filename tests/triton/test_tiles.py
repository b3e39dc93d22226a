"""The launches of every architecture, run by the interpreter: wide key tiles and every tail behind them."""

from __future__ import annotations

import pytest
import torch

from mvit_kernels.triton_kernels import run_attention
from mvit_kernels.triton_kernels.launch import Launch
from tests.numerics import Guarded
from tests.ops import test_backward as backward
from tests.ops.attention_cases import AttentionCase
from tests.triton.conftest import DEVICE, DTYPES
from tests.triton.test_backward import check

TAILS = [(64, 97), (64, 108), (64, 113), (64, 128), (128, 33), (128, 177), (128, 200), (128, 225), (128, 256)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block_n", "num_k"), TAILS)
def test_attention_matches_float64_at_every_tail_of_a_wide_tile(block_n, num_k, dtype, monkeypatch, poisoned_memory):
    monkeypatch.setattr(run_attention, "matrix_kernel", lambda *_: Launch(16, block_n, 4, 1))
    case = AttentionCase((1, 2, 3), (1, 1, num_k), heads=1, head_dim=16, has_cls=False, rel_pos=num_k % 2 == 1)
    make = Guarded(device=DEVICE)
    check(*backward.attention(case, dtype, make), make, dtype)


@pytest.mark.skipif(DEVICE == "cuda", reason="this machine has a GPU, whose own launches the other tests run")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["sm80", "sm90", "sm100", "sm120", "gfx9"])
def test_the_launches_of_every_architecture_match_float64(family, dtype, monkeypatch, poisoned_memory) -> None:
    monkeypatch.setattr(run_attention, "device_family", lambda device: family)
    # 97 and 49 keys: behind whole tiles of 64, 32 or 16 there are 33, 17 or one.
    for case in (
        AttentionCase((1, 5, 5), (2, 6, 8), heads=1),
        AttentionCase((1, 3, 5), (1, 7, 7), heads=2, head_dim=72, has_cls=False, residual="all"),
    ):
        make = Guarded(device=DEVICE)
        check(*backward.attention(case, dtype, make), make, dtype)
