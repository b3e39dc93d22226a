"""norm_mlp against the float64 reference, and against the three ops that it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mvit_kernels import accelerate, backends, ops, reference
from mvit_kernels.modules import MultiScaleBlock
from tests.conftest import KERNEL_BACKENDS
from tests.numerics import Guarded, assert_within_rule

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# (rows, channels, hidden, outputs): around the register block of 12 x 32, the chunk of 192 steps, odd pairs.
SHAPES = [
    (1, 1, 1, 1),
    (3, 5, 7, 5),
    (12, 32, 64, 32),
    (13, 33, 65, 31),
    (97, 96, 384, 96),
    (250, 96, 384, 192),
    (29, 384, 1536, 384),
    (11, 255, 771, 255),
]


def make_inputs(make: Guarded, shape: tuple[int, int, int, int], dtype: torch.dtype, wide: str = "") -> dict[str, Any]:
    """Of products in `dtype`; parameters, x and the residual in float32 where their letter (p, x, r) is in `wide`."""
    rows, channels, hidden, outputs = shape
    p, x, r = (torch.promote_types(dtype, torch.float32) if letter in wide else dtype for letter in "pxr")
    return {
        "x": make(rows, channels, dtype=x),
        "norm_weight": make(channels, dtype=p),
        "norm_bias": make(channels, dtype=p),
        "fc1_weight": make(hidden, channels, dtype=p, scale=channels**-0.5),
        "fc1_bias": make(hidden, dtype=p),
        "fc2_weight": make(outputs, hidden, dtype=p, scale=hidden**-0.5),
        "fc2_bias": make(outputs, dtype=p),
        "residual": make(rows, outputs, dtype=r),
        "eps": 1e-6,
        "dtype": dtype,
    }


def one_after_the_other(inputs: dict[str, Any]) -> Tensor:
    x, residual = inputs["x"], inputs["residual"]
    norm = inputs["norm_weight"], inputs["norm_bias"]
    normed = ops.layer_norm(x, *norm, eps=inputs["eps"], dtype=inputs["dtype"])
    hidden = ops.linear(normed, inputs["fc1_weight"], inputs["fc1_bias"], activation="gelu")
    return ops.linear(hidden, inputs["fc2_weight"], inputs["fc2_bias"], residual=x if residual is None else residual)


def check(*draws: dict[str, Any]) -> None:
    """The rule on the outputs of all `draws` together: on a few numbers it is a matter of luck."""
    results = []
    for inputs in draws:
        dtype = inputs["dtype"]
        double = {
            name: (t.to(dtype) if name in ("fc1_weight", "fc2_weight") else t).double()
            for name, t in inputs.items()
            if isinstance(t, Tensor)
        }
        exact = reference.norm_mlp(**{**inputs, **double, "dtype": None})
        results.append((ops.norm_mlp(**inputs), reference.norm_mlp(**inputs), exact))
    out, eager, oracle = (torch.cat([tensor.flatten() for tensor in kind]) for kind in zip(*results, strict=True))
    assert_within_rule(out, eager, oracle, dtype=draws[0]["dtype"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_matches_float64(shape: tuple[int, int, int, int], dtype: torch.dtype, backend, poisoned_memory) -> None:
    make = Guarded()
    # A norm over a few channels can divide by almost nothing, and one number is a matter of luck.
    draws = [make_inputs(make, shape, dtype) for _ in range(1 + 100 // (shape[0] * shape[3]))]
    check(*draws)
    check(*({**inputs, "norm_weight": None, "norm_bias": None, "fc1_bias": None, "fc2_bias": None} for inputs in draws))
    if shape[1] == shape[3]:
        check(*({**inputs, "residual": None} for inputs in draws))
    make.assert_untouched()


@pytest.mark.parametrize("wide", ["", "p", "px", "pr", "pxr"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_bits_as_the_ops_one_after_the_other(
    shape: tuple[int, int, int, int], dtype: torch.dtype, wide: str, backend, poisoned_memory
) -> None:
    make = Guarded()
    inputs = make_inputs(make, shape, dtype, wide)
    out = ops.norm_mlp(**inputs)
    assert out.is_contiguous() and out.dtype == inputs["residual"].dtype
    assert torch.equal(out, one_after_the_other(inputs))
    make.assert_untouched()


@pytest.mark.parametrize("name", KERNEL_BACKENDS)
@given(data=st.data())
def test_the_same_bits_on_any_shape_and_number_of_threads(name: str, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 130), *(st.integers(1, 130) for _ in range(3))))
    inputs = make_inputs(Guarded(), shape, data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(["", "pxr"])))
    threads = torch.get_num_threads()
    try:
        with backends.use_backend(name):
            expected = one_after_the_other(inputs)
            torch.set_num_threads(data.draw(st.integers(1, 4)))
            assert torch.equal(ops.norm_mlp(**inputs), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_rows_and_transposed_weights(dtype: torch.dtype, backend, poisoned_memory) -> None:
    inputs = make_inputs(Guarded(), (60, 50, 77, 50), dtype)
    x = torch.randn(4, 15, 3, 60).to(dtype)[:, :, 1, 5:55]
    weights = {name: inputs[name].t().contiguous().t() for name in ("fc1_weight", "fc2_weight")}
    strided = {**inputs, **weights, "x": x, "residual": x.flip(1)}
    contiguous = {**inputs, "x": x.contiguous(), "residual": x.flip(1).contiguous()}
    assert torch.equal(ops.norm_mlp(**strided), ops.norm_mlp(**contiguous))
    expanded = {**inputs, "x": x[0, 0].expand(4, 15, 50), "residual": None}
    assert torch.equal(ops.norm_mlp(**expanded)[3, 7], ops.norm_mlp(**{**expanded, "x": x[0, 0]}))


def test_no_rows_and_no_outputs(backend) -> None:
    for shape in ((0, 8, 32, 8), (5, 8, 32, 0)):
        assert ops.norm_mlp(**make_inputs(Guarded(), shape, torch.float32)).shape == (shape[0], shape[3])


def test_a_row_with_nan_or_infinity_spoils_no_other(backend) -> None:
    inputs = make_inputs(Guarded(), (30, 16, 64, 16), torch.float32)
    clean = ops.norm_mlp(**inputs)
    inputs["x"][7, 3], inputs["x"][20, 0] = torch.nan, torch.inf
    spoilt = ops.norm_mlp(**inputs)
    rows = [row for row in range(30) if row not in (7, 20)]
    assert spoilt[[7, 20]].isnan().all() and torch.equal(spoilt[rows], clean[rows])


def test_with_gradients_the_reference_runs_and_has_them() -> None:
    inputs = make_inputs(Guarded(), (9, 10, 40, 10), torch.float64)
    names = [name for name, t in inputs.items() if isinstance(t, Tensor)]

    def run(*tensors: Tensor) -> Tensor:
        return ops.norm_mlp(**{**inputs, **dict(zip(names, tensors, strict=True))})

    assert torch.autograd.gradcheck(run, [inputs[name].detach().clone().requires_grad_() for name in names])


def test_the_cpu_backend_says_that_it_has_no_gradient_of_it() -> None:
    inputs = make_inputs(Guarded(), (9, 10, 40, 10), torch.float32)
    inputs["x"].requires_grad_()
    if "cpu" in KERNEL_BACKENDS:
        with backends.use_backend("cpu"), pytest.raises(backends.UnsupportedError, match="norm_mlp with gradient"):
            ops.norm_mlp(**inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype, backend) -> None:
    inputs = make_inputs(Guarded(), (5, 6, 24, 6), dtype)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    parameters = [inputs[f"{layer}_{kind}"] for layer in ("norm", "fc1", "fc2") for kind in ("weight", "bias")]
    for residual in (None, inputs["residual"]):
        arguments = (inputs["x"], *parameters[:2], 1e-6, *parameters[2:], residual, dtype)
        torch.library.opcheck(torch.ops.mvit_kernels.norm_mlp.default, arguments, test_utils=tests)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 0)}, r"norm_mlp: x has shape \(3, 0\), \(\.\.\., C\) with C >= 1 is right"),
        ({"norm_weight": torch.zeros(5)}, r"norm_mlp: norm_weight has shape \(5,\), \(8,\) is right"),
        ({"eps": float("nan")}, "norm_mlp: eps is nan, a finite number of at least 0 is right"),
        ({"fc1_weight": torch.zeros(32, 9)}, r"norm_mlp: fc1_weight has shape \(32, 9\), \(32, 8\) is right"),
        ({"fc1_bias": torch.zeros(8)}, r"norm_mlp: fc1_bias has shape \(8,\), \(32,\) is right"),
        ({"fc2_weight": torch.zeros(8, 31)}, r"norm_mlp: fc2_weight has shape \(8, 31\), \(8, 32\) is right"),
        ({"fc2_weight": torch.zeros(8, 32).half()}, "norm_mlp: fc2_weight has dtype torch.float16, torch.float32 like"),
        ({"residual": None, "fc2_weight": torch.zeros(9, 32), "fc2_bias": None}, "norm_mlp: residual is None, "),
        ({"residual": torch.zeros(3, 9)}, r"norm_mlp: residual has shape \(3, 9\), \(3, 8\) is right"),
        ({"residual": torch.zeros(3, 8).half()}, "norm_mlp: residual has dtype torch.float16, torch.float32 like"),
        ({"dtype": torch.float64}, "norm_mlp: dtype is torch.float64 for x of torch.float32, torch.float32 is right"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ops.norm_mlp(**{**make_inputs(Guarded(), (3, 8, 32, 8), torch.float32), **changes})


# ---- In a block ----


def accelerated_block(dim: int, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    block = MultiScaleBlock(dim, input_size=(2, 6, 6), qkv_bias=True, **options)
    accelerate(block, scope="block")
    return block


def block_ops(block: nn.Module, x: Tensor) -> list[str]:
    with backends.record() as log, torch.no_grad():
        block(x, (2, 6, 6))
    return [decision.problem.op for decision in log]


@pytest.mark.parametrize("dim_out", [16, 32])
def test_a_block_gives_the_same_bits_with_it_and_without(dim_out: int, monkeypatch, backend) -> None:
    block, x = accelerated_block(16, dim_out=dim_out, num_heads=2), torch.randn(2, 73, 16)
    assert "norm_mlp" in block_ops(block, x)
    with torch.no_grad():
        together, _ = block(x, (2, 6, 6))
    monkeypatch.setattr(type(backends.get(backend)), "gains_by_norm_mlp", lambda self, problem: False)
    assert "norm_mlp" not in block_ops(block, x)
    with torch.no_grad():
        assert torch.equal(block(x, (2, 6, 6))[0], together)


def test_a_block_takes_the_ops_where_it_is_trained_or_its_weights_are_large(backend) -> None:
    block, x = accelerated_block(16, dim_out=16, num_heads=2), torch.randn(2, 73, 16)
    with backends.record() as log:
        block(x, (2, 6, 6))[0].sum().backward()
    assert "norm_mlp" not in [decision.problem.op for decision in log]
    assert "norm_mlp" not in block_ops(accelerated_block(768, dim_out=768, num_heads=8), torch.randn(1, 73, 768))
