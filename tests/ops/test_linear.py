"""linear and layer_norm against the float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mvit_kernels import _library, backends, ops, reference
from tests.conftest import KERNEL_BACKENDS
from tests.numerics import Guarded, assert_within_rule

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# (rows, in, out): around the register block of 12 x 32, the chunk of 384 steps, the vector, a row stride that aliases.
SHAPES = [
    (1, 1, 1),
    (3, 5, 7),
    (12, 32, 32),
    (13, 33, 31),
    (25, 96, 65),
    (97, 97, 96),
    (40, 768, 33),
    (29, 1024, 40),
    (11, 1155, 17),
    (601, 48, 144),
]


def make_linear(make: Guarded, shape: tuple[int, int, int], dtype: torch.dtype, wide: bool = False) -> dict[str, Any]:
    rows, inputs, outputs = shape
    parameter_dtype = torch.promote_types(dtype, torch.float32) if wide else dtype
    return {
        "x": make(rows, inputs, dtype=dtype),
        "weight": make(outputs, inputs, dtype=parameter_dtype, scale=inputs**-0.5),
        "bias": make(outputs, dtype=parameter_dtype),
        "residual": make(rows, outputs, dtype=parameter_dtype),
    }


def double(tensors: dict[str, Any], rounded_to: torch.dtype) -> dict[str, Any]:
    """In float64; the weight as every implementation takes it, rounded to x's dtype."""
    return {
        name: t if not isinstance(t, Tensor) else (t.to(rounded_to) if name == "weight" else t).double()
        for name, t in tensors.items()
    }


def check(*draws: dict[str, Any], **options: Any) -> None:
    """The rule on the outputs of all `draws` of inputs together: on a few numbers it is a matter of luck."""
    results = []
    dtype = draws[0]["x"].dtype
    for inputs in draws:
        out = ops.linear(**inputs, **options)
        assert out.is_contiguous()
        exact = reference.linear(**double(inputs, dtype), **options)
        results.append((out, reference.linear(**inputs, **options), exact))
    out, eager, oracle = (torch.cat([tensor.flatten() for tensor in kind]) for kind in zip(*results, strict=True))
    assert_within_rule(out, eager, oracle, dtype=dtype)


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_matches_float64(shape, dtype, activation, backend, poisoned_memory) -> None:
    make = Guarded()
    inputs = make_linear(make, shape, dtype)
    check(inputs, activation=activation)
    check({**inputs, "residual": None}, activation=activation)
    check({**inputs, "residual": None, "bias": None}, activation=activation)
    make.assert_untouched()


@pytest.mark.parametrize("name", KERNEL_BACKENDS)
@given(data=st.data())
def test_linear_matches_float64_on_any_shape(name: str, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 70), st.integers(1, 130), st.integers(1, 100)))
    dtype = data.draw(st.sampled_from(DTYPES))
    draws = 1 + 100 // (shape[0] * shape[2])
    with backends.use_backend(name):
        check(*(make_linear(Guarded(seed), shape, dtype) for seed in range(draws)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_parameters_and_residual_of_a_half_projection(dtype: torch.dtype, backend, poisoned_memory) -> None:
    inputs = make_linear(Guarded(), (37, 61, 45), dtype, wide=True)
    assert ops.linear(**inputs).dtype == torch.float32
    check(inputs)
    check({**inputs, "residual": None}, activation="gelu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_reads_strided_rows_and_transposed_weights(dtype: torch.dtype, backend, poisoned_memory) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    x, weight, bias, residual = random(4, 19, 3, 50), random(50, 77), random(77), random(4, 19, 77)
    check({"x": x[:, :, 1, 1:50], "weight": weight.t()[:, 1:], "bias": bias, "residual": residual})
    check({"x": x[:, :, 2].transpose(0, 1), "weight": weight[:, ::2].t(), "bias": bias[::2], "residual": None})
    check(
        {
            "x": x[0, 0, 0].expand(4, 5, 50),
            "weight": weight.t(),
            "bias": None,
            "residual": residual[0, :5].expand(4, 5, 77),
        }
    )
    check({"x": x[0, 0, 0], "weight": weight.t(), "bias": None, "residual": None})


@pytest.mark.parametrize("shape", [(0, 8, 8), (5, 8, 0)], ids=str)
def test_linear_without_elements(shape: tuple[int, int, int], backend) -> None:
    check(make_linear(Guarded(), shape, torch.float32))


def test_nan_and_infinity_go_where_the_formula_takes_them(backend) -> None:
    x = torch.tensor([[torch.nan, 1.0], [torch.inf, 1.0], [-torch.inf, 1.0], [-3e38, 0.0], [3e38, 0.0], [-0.0, 0.0]])
    weight = torch.eye(2)
    for activation in ("none", "gelu"):
        out = ops.linear(x, weight, activation=activation)
        expected = reference.linear(x.double(), weight.double(), activation=activation).float()
        torch.testing.assert_close(out, expected, equal_nan=True)


def test_gelu_is_as_exact_as_eager_at_every_magnitude(backend) -> None:
    for limit in (1e-3, 0.5, 1.0, 3.0, 7.9, 8.1, 30.0):
        x = torch.linspace(-limit, limit, 20001)[:, None]
        check({"x": x, "weight": torch.ones(1, 1), "bias": None, "residual": None}, activation="gelu")


def change_in_place(weight: torch.nn.Parameter) -> None:
    with torch.no_grad():
        weight.add_(1.0)


def change_by_optimizer(weight: torch.nn.Parameter) -> None:
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=1.0).step()


def change_by_load_state_dict(weight: torch.nn.Parameter) -> None:
    module = torch.nn.ParameterDict({"weight": weight})
    module.load_state_dict({"weight": weight.detach() + 1})


def change_by_data_assignment(weight: torch.nn.Parameter) -> None:
    weight.data = weight.data + 1


def change_data_in_place(weight: torch.nn.Parameter) -> None:
    weight.data.add_(1)  # PyTorch counts no version for this


def change_through_numpy(weight: torch.nn.Parameter) -> None:
    weight.detach().numpy()[...] += 1  # nor for this


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        change_by_optimizer,
        change_by_load_state_dict,
        change_by_data_assignment,
        change_data_in_place,
        change_through_numpy,
    ],
)
def test_a_changed_weight_is_seen_by_the_next_call(change, backend) -> None:
    weight, x = torch.nn.Parameter(torch.randn(64, 48)), torch.randn(100, 48)
    with torch.no_grad():
        ops.linear(x, weight)
    change(weight)
    with torch.no_grad():
        torch.testing.assert_close(ops.linear(x, weight), x @ weight.t())


# ---- LayerNorm ----


def check_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype | None = None) -> None:
    out = ops.layer_norm(x, weight, bias, eps=1e-6, dtype=dtype)
    eager = reference.layer_norm(x, weight, bias, 1e-6, dtype=dtype)
    wide = [None if t is None else t.double() for t in (x, weight, bias)]
    assert_within_rule(out, eager, reference.layer_norm(*wide, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 2, 15, 16, 17, 63, 64, 65, 96, 100, 768, 769])
def test_layer_norm_matches_float64(channels: int, dtype: torch.dtype, backend, poisoned_memory) -> None:
    make = Guarded()
    x, weight, bias = make(37, channels, dtype=dtype), make(channels, dtype=dtype), make(channels, dtype=dtype)
    check_norm(x, weight, bias)
    check_norm(x, None, None)
    check_norm(x, weight, None)
    make.assert_untouched()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_layer_norm_writes_the_half_dtype_it_is_asked_for(dtype: torch.dtype, backend, poisoned_memory) -> None:
    make = Guarded()
    x, weight, bias = make(37, 96), make(96), make(96)
    assert ops.layer_norm(x, weight, bias, dtype=dtype).dtype == dtype
    check_norm(x, weight, bias, dtype)


def test_layer_norm_reads_strided_rows_and_none(backend, poisoned_memory) -> None:
    x = torch.randn(4, 19, 3, 50)
    check_norm(x[:, :, 1, 1:49], torch.randn(48), torch.randn(48))
    check_norm(x.transpose(0, 3), torch.randn(4), None)
    check_norm(x[:, :0], torch.randn(50), None)


def test_layer_norm_keeps_a_large_mean_out_of_the_variance(backend) -> None:
    check_norm(1000 + torch.randn(50, 96), torch.randn(96), torch.randn(96))


# ---- Gradients and the torch.library contract ----


def calls(dtype: torch.dtype, which: Any) -> dict[str, tuple[Any, list[Tensor]]]:
    make = Guarded()
    inputs = list(make_linear(make, (9, 10, 7), dtype).values())

    def linear(activation: str) -> Any:
        return lambda x, w, b, r: which.linear(x, w, b, residual=r, activation=activation)

    return {
        "linear": (linear("none"), inputs),
        "linear with gelu": (linear("gelu"), inputs),
        "layer_norm": (
            lambda x, w, b: which.layer_norm(x, w, b, eps=1e-6),
            [make(9, 10, dtype=dtype), make(10, dtype=dtype), make(10, dtype=dtype)],
        ),
    }


NAMES = ["linear", "linear with gelu", "layer_norm"]


class Fused:
    """The ops with GELU inside, where the public function keeps it outside for training."""

    layer_norm = staticmethod(ops.layer_norm)

    @staticmethod
    def linear(x: Tensor, weight: Tensor, bias: Tensor, *, residual: Tensor, activation: str) -> Tensor:
        return torch.ops.mvit_kernels.linear(x, weight, bias, residual, activation)


@pytest.mark.parametrize("which", [ops, Fused], ids=["public", "fused"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_pass_gradcheck_in_float64(name: str, which: Any, backend) -> None:
    run, inputs = calls(torch.float64, which)[name]
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_match_float64(name: str, dtype: torch.dtype, backend, poisoned_memory) -> None:
    run, inputs = calls(dtype, ops)[name]
    eager_run, _ = calls(dtype, reference)[name]

    def gradients(function: Any, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        tensors = [t.detach().clone().requires_grad_() for t in tensors]
        out = function(*tensors)
        grad = torch.linspace(-1, 1, out.numel()).to(dtype).to(out.dtype).view(out.shape)
        return torch.autograd.grad(out, tensors, grad)

    kernel, eager = gradients(run, inputs), gradients(eager_run, inputs)
    oracle = gradients(eager_run, [t.double() for t in inputs])
    for k, e, o in zip(kernel, eager, oracle, strict=True):
        assert_within_rule(k, e, o, "gradient")


def test_only_the_needed_gradients_and_strange_strides_of_the_incoming_one(backend) -> None:
    x, weight = torch.randn(6, 10), torch.randn(7, 10, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.linear(x, weight), weight, torch.ones(()).expand(6, 7))
    torch.testing.assert_close(grad, x.sum(0).expand(7, 10))
    (grad,) = torch.autograd.grad(ops.linear(x, weight), weight, torch.ones(7, 6).t())
    torch.testing.assert_close(grad, x.sum(0).expand(7, 10))


def test_gradient_of_float32_parameters_is_float32(backend) -> None:
    inputs = make_linear(Guarded(), (9, 10, 7), torch.bfloat16, wide=True)
    tensors = [t.requires_grad_() for t in inputs.values()]
    out = ops.linear(**inputs)
    grads = torch.autograd.grad(out, tensors, torch.ones_like(out))
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32, torch.float32, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype, backend) -> None:
    inputs = [t.detach().clone().requires_grad_() for t in make_linear(Guarded(), (5, 6, 7), dtype).values()]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for activation in ("none", "gelu"):
        torch.library.opcheck(torch.ops.mvit_kernels.linear.default, (*inputs, activation), test_utils=tests)
    x, _, _, _ = inputs
    parameter = torch.randn(6, dtype=dtype, requires_grad=True)
    torch.library.opcheck(
        torch.ops.mvit_kernels.layer_norm.default, (x, parameter, None, 1e-6, dtype), test_utils=tests
    )


# ---- Bad input ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 9)}, r"linear: x has shape \(3, 9\), \(\.\.\., 8\) like weight is right"),
        ({"weight": torch.zeros(4)}, r"linear: weight has shape \(4,\), \(N, K\) is right"),
        ({"weight": torch.zeros(4, 0)}, r"linear: weight has shape \(4, 0\), at least one input is right"),
        (
            {"weight": torch.zeros(4, 8).double()},
            "linear: weight has dtype torch.float64, torch.float32 like x is right",
        ),
        ({"bias": torch.zeros(5)}, r"linear: bias has shape \(5,\), \(4,\) is right"),
        ({"residual": torch.zeros(4, 4)}, r"linear: residual has shape \(4, 4\), \(3, 4\) is right"),
        ({"residual": torch.zeros(3, 4).bfloat16()}, "linear: residual has dtype torch.bfloat16, torch.float32 like x"),
        ({"activation": "relu"}, "linear: activation is 'relu', one of none, gelu is right"),
        ({"x": torch.zeros(3, 8).int()}, "linear: x has dtype torch.int32, float32"),
    ],
)
def test_bad_linear_input_is_named(changes: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.zeros(3, 8), "weight": torch.zeros(4, 8), **changes}
    with pytest.raises((TypeError, ValueError), match=message):
        ops.linear(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 0)}, r"layer_norm: x has shape \(3, 0\), \(\.\.\., C\) with C >= 1 is right"),
        ({"weight": torch.zeros(5)}, r"layer_norm: weight has shape \(5,\), \(8,\) is right"),
        ({"eps": -1.0}, "layer_norm: eps is -1.0, a finite number of at least 0 is right"),
        ({"dtype": torch.float64}, "layer_norm: dtype is torch.float64 for x of torch.float32, torch.float32 is right"),
    ],
)
def test_bad_layer_norm_input_is_named(changes: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.zeros(3, 8), **changes}
    with pytest.raises((TypeError, ValueError), match=message):
        ops.layer_norm(**arguments)


# ---- Threads and levels ----


def test_results_do_not_depend_on_the_number_of_threads(backend) -> None:
    inputs = make_linear(Guarded(), (997, 192, 130), torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3, 8):
            torch.set_num_threads(n)
            results.append(ops.linear(**inputs))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.skipif(_library.cpu_level() is None, reason="the C++ library is not there")
@pytest.mark.parametrize("level", [level for level in _library.cpu_levels() if level != _library.cpu_level()])
def test_every_lower_level_is_within_the_rule(level: str) -> None:
    chosen = "test_linear_matches_float64 or test_layer_norm_matches_float64 or test_gelu or strided or half or nan_and"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", chosen],
        env={**os.environ, "MVIT_KERNELS_CPU_LEVEL": level},
        capture_output=True,
        text=True,
    )
    if "that this CPU supports" in run.stdout + run.stderr:
        pytest.skip(f"this CPU does not run {level}")
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-3000:]
