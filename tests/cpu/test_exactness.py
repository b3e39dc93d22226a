"""Parts of the kernels that are more exact than the numerics rule asks of a whole op, and would hide behind it."""

from __future__ import annotations

import math

import pytest
import torch

from mvit_kernels import ops, use_backend
from mvit_kernels.problem import Pool


@pytest.mark.parametrize("num_k", [1, 2, 16, 49, 393])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_log_sum_exp_is_off_by_no_more_than_the_exponential_may_be(dtype: torch.dtype, num_k: int) -> None:
    g = torch.Generator().manual_seed(num_k)
    q, k, v = (torch.randn(1, 2, n, 32, generator=g).to(dtype) for n in (64, num_k, num_k))
    with use_backend("cpu"):
        _, lse = torch.ops.mvit_kernels.pooling_attention(q, k, v, None, [0, 0, 0], 0.3, False, "none", False)
    exact = (0.3 * q.double() @ k.double().transpose(-1, -2)).logsumexp(-1)
    # 2^-18 of exp, as csrc/cpu/simd.h has it, and a few roundings of scores and sum in float32.
    bound = 2**-18 + 8 * 2**-24 * (exact.abs().max().item() + math.log(2))
    assert (lse - exact).abs().max().item() <= bound


def test_the_gradients_of_a_norm_are_compensated_sums_over_many_tokens() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 1 + 8 * 56 * 56, 16, generator=g)
    norm_weight, norm_bias = torch.ones(16, requires_grad=True), torch.zeros(16, requires_grad=True)
    grad = torch.randn(x.shape, generator=g)  # of both signs: the sum is small beside what is added
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one long sum, which parts for several threads would shorten
    try:
        with use_backend("cpu"):
            pool = Pool("avg", (1, 1, 1), (1, 1, 1), (0, 0, 0))
            norm = {"norm_weight": norm_weight, "norm_bias": norm_bias, "norm_eps": 1e-6}
            ops.pool3d_norm(x, (8, 56, 56), pool, has_cls=True, **norm).backward(grad)
    finally:
        torch.set_num_threads(threads)
    assert norm_bias.grad is not None
    torch.testing.assert_close(norm_bias.grad.double(), grad.double().sum((0, 1, 2)), rtol=2**-23, atol=0)


@pytest.mark.parametrize("depth", [384, 768, 3072])
def test_a_long_float32_projection_rounds_no_more_than_eagers(depth: int) -> None:
    g = torch.Generator().manual_seed(depth)
    x, weight = torch.randn(393, depth, generator=g), torch.randn(384, depth, generator=g) / depth**0.5
    with use_backend("cpu"):
        y = ops.linear(x, weight, None)
    exact = x.double() @ weight.double().T
    assert (y - exact).norm() <= 1.1 * (torch.nn.functional.linear(x, weight) - exact).norm()
