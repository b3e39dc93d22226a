"""pool3d_norm and qkv_pool3d_norm against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mvit_kernels import backends, ops, reference
from mvit_kernels.problem import Pool, touched_grid
from tests.conftest import KERNEL_BACKENDS
from tests.numerics import Guarded, assert_within_rule, double
from tests.ops.pool_cases import K3, ODD_CASES, S1, PoolCase, pool

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def check(case: PoolCase, dtype: torch.dtype) -> None:
    make = Guarded()
    inputs = case.inputs(make, dtype)
    names = list(inputs)
    x, *parameters = inputs.values()
    assert x is not None
    kernel = ops.pool3d_norm(x, case.thw, case.pool, **dict(zip(names[1:], parameters, strict=True)), **case.options)
    make.assert_untouched()
    assert kernel.is_contiguous()
    eager = reference.pool3d_norm(
        x, case.thw, case.pool, **dict(zip(names[1:], parameters, strict=True)), **case.options
    )
    x64, *parameters64 = double([x, *parameters])
    oracle = reference.pool3d_norm(
        x64, case.thw, case.pool, **dict(zip(names[1:], parameters64, strict=True)), **case.options
    )
    assert_within_rule(kernel, eager, oracle)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ODD_CASES, ids=str)
def test_pooling_matches_float64_on_odd_shapes(case: PoolCase, dtype: torch.dtype, backend, poisoned_memory) -> None:
    check(case, dtype)


@pytest.mark.parametrize("name", KERNEL_BACKENDS)
@given(data=st.data())
def test_pooling_matches_float64_on_any_geometry(name: str, data: st.DataObject) -> None:
    axis = st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 5))
    axes = [data.draw(axis, label=label) for label in "thw"]
    mode = data.draw(st.sampled_from(["conv", "avg", "max"]))
    padding = tuple(data.draw(st.integers(0, k // 2)) for _, k, _ in axes)
    thw = tuple(max(n, k - 2 * p) for (n, k, _), p in zip(axes, padding, strict=True))
    geometry = Pool(mode, tuple(k for _, k, _ in axes), tuple(s for _, _, s in axes), padding)
    case = PoolCase(
        thw,
        geometry,
        batch=data.draw(st.integers(1, 2)),
        heads=data.draw(st.integers(1, 3)),
        head_dim=data.draw(st.integers(2, 40)),
        has_cls=data.draw(st.booleans()),
        # LayerNorm of an avg or max pool of few values divides by a spread near zero, which amplifies rounding at will.
        norm=mode == "conv" and data.draw(st.booleans()),
        per_channel=data.draw(st.booleans()),
    )
    with backends.use_backend(name):
        check(case, data.draw(st.sampled_from([torch.float32, torch.float64])))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_three_branches_of_a_fused_projection_match_three_calls(dtype: torch.dtype, backend, poisoned_memory) -> None:
    cases = [
        PoolCase((4, 9, 11), pool("conv", K3, S1)),
        PoolCase((4, 9, 11), pool("conv", K3, (1, 4, 4))),
        PoolCase((4, 5, 6), pool("max", (1, 2, 2), (1, 2, 2)), norm=False),
    ]
    make = Guarded()
    inputs = [case.inputs(make, dtype) for case in cases]
    together = ops.qkv_pool3d_norm(
        [i["x"] for i in inputs],
        [case.thw for case in cases],
        [case.pool for case in cases],
        has_cls=True,
        weight=[i["weight"] for i in inputs],
        norm_weight=[i["norm_weight"] for i in inputs],
        norm_bias=[i["norm_bias"] for i in inputs],
        norm_eps=[case.options["norm_eps"] for case in cases],
    )
    make.assert_untouched()
    for out, case, i in zip(together, cases, inputs, strict=True):
        alone = ops.pool3d_norm(
            i["x"],
            case.thw,
            case.pool,
            weight=i["weight"],
            norm_weight=i["norm_weight"],
            norm_bias=i["norm_bias"],
            **case.options,
        )
        assert torch.equal(out, alone)


def test_float32_parameters_go_with_bfloat16_tokens(backend) -> None:
    case = PoolCase((2, 7, 7), pool("conv", K3, S1))
    inputs = case.inputs(Guarded(), torch.float32)
    out = ops.pool3d_norm(inputs.pop("x").bfloat16(), case.thw, case.pool, **inputs, **case.options)
    assert out.dtype == torch.bfloat16 and out.isfinite().all()


def test_nan_and_infinity_reach_the_outputs_that_read_them_and_no_others(backend) -> None:
    thw = (1, 5, 5)
    for mode, bad in (
        ("conv", torch.nan),
        ("conv", torch.inf),
        ("max", torch.nan),
        ("max", torch.inf),
        ("avg", -torch.inf),
    ):
        x = torch.randn(1, 1, 25, 8)
        x[0, 0, 12, 3] = bad
        weight = torch.rand(8, 1, 1, 3, 3) + 0.1 if mode == "conv" else None
        geometry = pool(mode, (1, 3, 3), S1)
        out = ops.pool3d_norm(x, thw, geometry, weight=weight)
        expected = reference.pool3d_norm(x, thw, geometry, has_cls=False, weight=weight)
        assert torch.equal(out.isfinite(), expected.isfinite()), (mode, bad)
        assert torch.equal(out.isnan(), expected.isnan()), (mode, bad)


def test_last_stride_other_than_one_gives_the_same_result(backend) -> None:
    x = torch.randn(1, 2, 16, 12)
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert strided.stride(-1) != 1
    geometry = pool("avg", (1, 2, 2), (1, 2, 2))
    assert torch.equal(ops.pool3d_norm(strided, (1, 4, 4), geometry), ops.pool3d_norm(x, (1, 4, 4), geometry))


@given(
    n=st.integers(1, 60),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 9),
    padded=st.booleans(),
)
def test_touched_grid_pools_to_the_same_numbers(n: int, kernel: int, stride: int, padded: bool) -> None:
    padding = kernel // 2 if padded else 0
    n = max(n, kernel - 2 * padding)
    thw, geometry = (2, n, 3), Pool("conv", (1, kernel, 1), (1, stride, 1), (0, padding, 0))
    touched = touched_grid(geometry, thw)
    assert touched.pool.out_grid(touched.thw) == geometry.out_grid(thw)
    x, weight = torch.randn(1, 1, 6 * n, 4, dtype=torch.float64), torch.randn(4, 1, 1, kernel, 1, dtype=torch.float64)
    rows = x.view(1, 1, 2, n, 3, 4)[:, :, :, list(touched.rows[1])].flatten(2, 4)
    full = reference.pool3d_norm(x, thw, geometry, has_cls=False, weight=weight)
    dense = reference.pool3d_norm(rows, touched.thw, touched.pool, has_cls=False, weight=weight)
    torch.testing.assert_close(dense, full, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_reference_has_the_right_weight_gradient_in_every_dtype(dtype: torch.dtype) -> None:
    """What every kernel is judged by: PyTorch's bfloat16 convolution of token-major input gives rubbish here."""
    x, weight = torch.randn(2, 1, 129, 16), torch.randn(16, 1, 3, 3, 3)
    pool = Pool("conv", (3, 3, 3), (1, 2, 2), (1, 1, 1))

    def gradient(kind: torch.dtype) -> Tensor:
        w = weight.to(dtype).to(kind).requires_grad_()
        y = reference.pool3d_norm(x.to(dtype).to(kind), (2, 8, 8), pool, has_cls=True, weight=w)
        return torch.autograd.grad(y.sin().sum(), w)[0].double()

    exact = gradient(torch.float64)
    assert float((gradient(dtype) - exact).abs().max()) <= 4 * torch.finfo(dtype).eps * float(exact.abs().max()) + 1e-5
