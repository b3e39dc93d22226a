"""The backward ops: gradients against the float64 reference, and what callers of autograd rely on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mvit_kernels import backends, ops, reference
from mvit_kernels.problem import Pool
from tests.conftest import KERNEL_BACKENDS
from tests.numerics import Guarded, assert_within_rule
from tests.ops import attention_cases, pool_cases
from tests.ops.attention_cases import AttentionCase
from tests.ops.pool_cases import K3, S1, PoolCase, pool
from tests.ops.test_decomposed_rel_pos import GRIDS, make_inputs

Call = Callable[..., Any]
# A single number, or a zero but for rounding, says nothing by comparison: LayerNorm over one value, one query
# with one head dim.
POOL_CASES = [replace(case, norm=case.norm and case.head_dim > 1) for case in pool_cases.ODD_CASES]
ATTENTION_CASES = [
    replace(case, grid_q=(1, 3, 2), grid_k=(1, 2, 3)) if case.head_dim == 1 else case
    for case in attention_cases.ODD_CASES
]
REL_POS_GRIDS = [(grid_q, grid_k, max(dim, 7)) for grid_q, grid_k, dim in GRIDS]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LOWER = DTYPES[:3]


def pooling(case: PoolCase, dtype: torch.dtype, make: Guarded) -> tuple[Call, list[Tensor]]:
    """A function of (ops or reference, tensors), and the tensors."""
    inputs = case.inputs(make, dtype)
    names = [name for name, value in inputs.items() if value is not None]

    def run(which: Any, tensors: Sequence[Tensor]) -> Tensor:
        x, *parameters = tensors
        return which.pool3d_norm(
            x, case.thw, case.pool, **dict(zip(names[1:], parameters, strict=True)), **case.options
        )

    return run, [inputs[name] for name in names]


def attention(case: AttentionCase, dtype: torch.dtype, make: Guarded) -> tuple[Call, list[Tensor]]:
    inputs = case.inputs(make, dtype)
    names = [name for name, value in inputs.items() if value is not None]

    def run(which: Any, tensors: Sequence[Tensor]) -> Tensor:
        out = which.pooling_attention(**dict(zip(names, tensors, strict=True)), **case.options)
        return out[0] if isinstance(out, tuple) else out

    return run, [inputs[name] for name in names]


def rel_pos(grids: tuple[Any, Any, int], has_cls: bool, dtype: torch.dtype, make: Guarded) -> tuple[Call, list[Tensor]]:
    grid_q, grid_k, dim = grids

    def run(which: Any, tensors: Sequence[Tensor]) -> Tensor:
        q, t, h, w = tensors
        return which.decomposed_rel_pos(q, grid_q, grid_k, has_cls=has_cls, table_t=t, table_h=h, table_w=w)

    return run, make_inputs(make, grid_q, grid_k, dim, has_cls, dtype)


def gradients(run: Call, which: Any, tensors: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    # requires_grad on an alias: the kernels read the strided tensors themselves.
    leaves = [t.detach().requires_grad_() for t in tensors]
    return torch.autograd.grad(run(which, leaves), leaves, grad)


def incoming(like: Tensor) -> Tensor:
    """A gradient for `like`: a strided view into a NaN-filled buffer."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)
    buffer = torch.full((*like.shape[:2], like.shape[2] + 1, like.shape[3] + 3), torch.nan, dtype=like.dtype)
    view = buffer[:, :, : like.shape[2], 2 : 2 + like.shape[3]]
    return view.copy_(values)


def check(run: Call, inputs: Sequence[Tensor], make: Guarded, dtype: torch.dtype) -> None:
    grad = incoming(run(reference, inputs))
    kernel, eager = gradients(run, ops, inputs, grad), gradients(run, reference, inputs, grad)
    make.assert_untouched()
    oracle = gradients(run, reference, [t.double() for t in inputs], grad.double())
    for k, e, o in zip(kernel, eager, oracle, strict=True):
        assert k.is_contiguous() or k.transpose(1, 2).is_contiguous()
        assert_within_rule(k, e, o, "gradient", dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", POOL_CASES, ids=str)
def test_pooling_gradients_match_float64_on_odd_shapes(case: PoolCase, dtype, backend, poisoned_memory) -> None:
    make = Guarded()
    run, inputs = pooling(case, dtype, make)
    check(run, inputs, make, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ATTENTION_CASES, ids=str)
def test_attention_gradients_match_float64_on_odd_shapes(case: AttentionCase, dtype, backend, poisoned_memory) -> None:
    make = Guarded()
    run, inputs = attention(case, dtype, make)
    check(run, inputs, make, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize("grids", REL_POS_GRIDS, ids=str)
def test_rel_pos_gradients_match_float64(grids, has_cls: bool, dtype, backend, poisoned_memory) -> None:
    make = Guarded()
    run, inputs = rel_pos(grids, has_cls, dtype, make)
    check(run, inputs, make, dtype)


# The stages of MViT-B and MViTv2-S, one frame pair and a quarter of the area.
PUBLISHED_ATTENTION = [
    AttentionCase((2, 28, 28), (2, 7, 7), heads=1, residual="no_cls"),
    AttentionCase((2, 14, 14), (2, 14, 14), heads=2),
    AttentionCase((2, 14, 14), (2, 7, 7), heads=4, rel_pos=False, residual="none"),
    AttentionCase((4, 7, 7), (4, 7, 7), heads=8),
]
PUBLISHED_POOLING = [
    PoolCase((2, 28, 28), pool("conv", K3, S1), heads=1),
    PoolCase((2, 28, 28), pool("conv", K3, (1, 8, 8)), heads=1),
    PoolCase((2, 20, 20), pool("conv", K3, (1, 3, 3)), heads=1),
    PoolCase((2, 28, 28), pool("conv", K3, (1, 2, 2)), heads=2),
    PoolCase((4, 7, 7), pool("conv", K3, S1), heads=8, batch=2),
    PoolCase((2, 28, 28), pool("max", (1, 3, 3), (1, 2, 2)), heads=1, norm=False),
]


@pytest.mark.parametrize("dtype", LOWER, ids=str)
@pytest.mark.parametrize("case", PUBLISHED_ATTENTION, ids=str)
def test_attention_gradients_match_float64_on_published_stages(case: AttentionCase, dtype, backend) -> None:
    make = Guarded()
    run, inputs = attention(case, dtype, make)
    check(run, inputs, make, dtype)


@pytest.mark.parametrize("dtype", LOWER, ids=str)
@pytest.mark.parametrize("case", PUBLISHED_POOLING, ids=str)
def test_pooling_gradients_match_float64_on_published_stages(case: PoolCase, dtype, backend) -> None:
    make = Guarded()
    run, inputs = pooling(case, dtype, make)
    check(run, inputs, make, dtype)


@pytest.mark.parametrize("name", KERNEL_BACKENDS)
@given(data=st.data())
def test_pooling_gradients_match_float64_on_any_geometry(name: str, data: st.DataObject) -> None:
    axes = [data.draw(st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 5)), label=a) for a in "thw"]
    mode = data.draw(st.sampled_from(["conv", "avg", "max"]))
    # A convolution may be padded by more than half its kernel: windows that lie outside altogether.
    padding = tuple(data.draw(st.integers(0, k + 1 if mode == "conv" else k // 2)) for _, k, _ in axes)
    thw = tuple(max(n, k - 2 * p) for (n, k, _), p in zip(axes, padding, strict=True))
    case = PoolCase(
        thw,
        Pool(mode, tuple(k for _, k, _ in axes), tuple(s for _, _, s in axes), padding),
        batch=data.draw(st.integers(1, 2)),
        heads=data.draw(st.integers(1, 3)),
        head_dim=data.draw(st.integers(1, 40)),
        has_cls=data.draw(st.booleans()),
        norm=False,
        per_channel=data.draw(st.booleans()),
    )
    make = Guarded()
    with backends.use_backend(name):
        run, inputs = pooling(case, torch.float64, make)
        check(run, inputs, make, torch.float64)


@pytest.mark.parametrize("name", KERNEL_BACKENDS)
@given(data=st.data())
def test_attention_gradients_match_float64_on_any_shape(name: str, data: st.DataObject) -> None:
    side = st.integers(1, 9)
    case = AttentionCase(
        data.draw(st.tuples(side, side, side)),
        data.draw(st.tuples(side, side, side)),
        batch=data.draw(st.integers(1, 2)),
        heads=data.draw(st.integers(1, 3)),
        head_dim=data.draw(st.integers(1, 40)),
        has_cls=data.draw(st.booleans()),
        rel_pos=data.draw(st.booleans()),
        residual=data.draw(st.sampled_from(["none", "all", "no_cls"])),
    )
    make = Guarded()
    with backends.use_backend(name):
        run, inputs = attention(case, torch.float64, make)
        check(run, inputs, make, torch.float64)


@pytest.mark.parametrize("num_k", [*range(1, 34), 47, 48, 49, 63, 64, 65, 393, 1025])
def test_attention_gradients_match_float64_at_every_tail_of_a_panel(num_k: int, backend, poisoned_memory) -> None:
    make = Guarded()
    run, inputs = attention(
        AttentionCase((1, 5, 5), (1, 1, num_k), heads=1, has_cls=False, rel_pos=num_k % 2 == 0), torch.float32, make
    )
    check(run, inputs, make, torch.float32)


LAYOUTS = {
    "as made": lambda g: g,
    "last dims swapped in memory": lambda g: g.transpose(-1, -2).contiguous().transpose(-1, -2),
    "heads and tokens swapped in memory": lambda g: g.transpose(1, 2).contiguous().transpose(1, 2),
    "one row for all": lambda g: g[:, :1].expand(g.shape),
    "one number for all": lambda g: g[:1, :1, :1, :1].expand(g.shape),
}
SOME = {
    "pooling": lambda make: pooling(PoolCase((2, 5, 7), pool("conv", K3, (1, 2, 2))), torch.float32, make),
    "max pooling": lambda make: pooling(PoolCase((2, 5, 7), pool("max", K3, S1), norm=False), torch.float32, make),
    "attention": lambda make: attention(AttentionCase((2, 3, 5), (2, 3, 3)), torch.float32, make),
    "rel pos": lambda make: rel_pos(GRIDS[3], True, torch.float32, make),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SOME)
def test_an_incoming_gradient_may_have_any_strides(name: str, layout: str, backend) -> None:
    run, inputs = SOME[name](Guarded())
    like = run(reference, inputs)
    grad = LAYOUTS[layout](torch.randn(like.shape))
    strided = gradients(run, ops, inputs, grad)
    contiguous = gradients(run, ops, inputs, grad.contiguous().clone())
    assert all(torch.equal(a, b) for a, b in zip(strided, contiguous, strict=True))


def test_the_gradient_of_pooled_tokens_lies_as_they_do(backend) -> None:
    run, inputs = SOME["pooling"](Guarded())
    grad = incoming(run(reference, inputs))
    sliced = gradients(run, ops, inputs, grad)[0]
    assert sliced.transpose(1, 2).is_contiguous() and not sliced.is_contiguous()
    contiguous = gradients(run, ops, [inputs[0].contiguous(), *inputs[1:]], grad)[0]
    assert contiguous.is_contiguous() and torch.equal(sliced, contiguous)


MANY_TASKS = {
    "pooling": lambda make: pooling(PoolCase((4, 28, 28), pool("conv", K3, S1), batch=2, heads=2), torch.float32, make),
    "pooling per channel": lambda make: pooling(
        PoolCase((4, 28, 28), pool("conv", K3, S1), heads=2, per_channel=True), torch.float32, make
    ),
    "attention of one head": lambda make: attention(
        AttentionCase((4, 14, 14), (4, 7, 7), heads=1), torch.float32, make
    ),
    "attention of many heads": lambda make: attention(
        AttentionCase((2, 14, 14), (4, 7, 7), heads=8, batch=2), torch.float32, make
    ),
    "rel pos": lambda make: rel_pos(((4, 14, 14), (4, 7, 7), 96), True, torch.float32, make),
}


@pytest.mark.parametrize("name", MANY_TASKS)
def test_the_same_gradients_come_out_again_bit_for_bit(name: str, backend) -> None:
    run, inputs = MANY_TASKS[name](Guarded())
    grad = incoming(run(reference, inputs))
    first = gradients(run, ops, inputs, grad)
    for _ in range(3):
        again = gradients(run, ops, inputs, grad)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name", MANY_TASKS)
@pytest.mark.parametrize("threads", [1, 7])
def test_gradients_match_float64_at_any_number_of_threads(name: str, threads: int, backend) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        make = Guarded()
        run, inputs = MANY_TASKS[name](make)
        check(run, inputs, make, torch.float32)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", MANY_TASKS)
def test_gradients_of_tokens_are_the_same_bits_at_any_number_of_threads(name: str, backend) -> None:
    run, inputs = MANY_TASKS[name](Guarded())
    grad = incoming(run(reference, inputs))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found.append(gradients(run, ops, inputs, grad)[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("name", SOME)
def test_any_choice_of_gradients_gives_the_same_ones(name: str, backend, poisoned_memory) -> None:
    run, inputs = SOME[name](Guarded())
    grad = incoming(run(reference, inputs))
    every = gradients(run, ops, inputs, grad)
    for choice in itertools.product([False, True], repeat=len(inputs)):
        if not any(choice):
            continue
        leaves = [t.detach().requires_grad_(chosen) for t, chosen in zip(inputs, choice, strict=True)]
        wanted = [i for i, chosen in enumerate(choice) if chosen]
        some = torch.autograd.grad(run(ops, leaves), [leaves[i] for i in wanted], grad)
        assert all(torch.equal(every[i], g) for i, g in zip(wanted, some, strict=True)), choice


def test_parameters_of_another_dtype_get_gradients_of_theirs(backend) -> None:
    case = PoolCase((2, 7, 7), pool("conv", K3, S1))
    for parameter_dtype in DTYPES:
        run, inputs = pooling(case, torch.float32, Guarded())
        inputs = [inputs[0].bfloat16(), *(t.bfloat16().to(parameter_dtype) for t in inputs[1:])]
        grad = incoming(run(reference, inputs))
        found = gradients(run, ops, inputs, grad)
        assert [g.dtype for g in found] == [torch.bfloat16, *[parameter_dtype] * 3]
        oracle = gradients(run, reference, [t.double() for t in inputs], grad.double())
        for k, o in zip(found, oracle, strict=True):
            torch.testing.assert_close(k.double(), o, rtol=2e-2, atol=2e-2 * float(o.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_max_pooling_gives_the_gradient_to_the_winner_pytorch_picks(dtype: torch.dtype, backend) -> None:
    x = torch.randint(0, 3, (1, 2, 4 * 9 * 9, 20)).to(dtype)  # ties everywhere
    x[0, 0, 40, 3] = torch.nan
    x[0, 0, 41, 3] = torch.nan
    x[0, 1, :, 5] = -torch.inf
    geometry = pool("max", K3, (1, 2, 2))

    def run(which: Any, tensors: Sequence[Tensor]) -> Tensor:
        return which.pool3d_norm(tensors[0], (4, 9, 9), geometry, has_cls=False)

    grad = torch.randint(1, 9, run(reference, [x]).shape).to(dtype)
    (kernel,), (expected,) = gradients(run, ops, [x], grad), gradients(run, reference, [x], grad)
    assert torch.equal(kernel, expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["attention", "pooling"])
def test_nan_and_infinity_reach_the_gradients_they_reach_in_eager(name: str, bad: float, backend) -> None:
    _, inputs = SOME[name](Guarded())
    for i in range(len(inputs) + 1):
        if name == "pooling" and i == 1:
            continue  # a weight that is not finite meets the padding in eager; the kernel reads no padding
        run, inputs = SOME[name](Guarded())
        grad = torch.randn(run(reference, inputs).shape)
        bad_one = grad if i == len(inputs) else inputs[i]
        bad_one[(0,) * bad_one.dim()] = bad
        kernel, eager = gradients(run, ops, inputs, grad), gradients(run, reference, inputs, grad)
        for k, e in zip(kernel, eager, strict=True):
            assert torch.equal(k.isfinite(), e.isfinite()), i


def test_scores_that_are_minus_infinity_give_no_gradient(backend) -> None:
    run, inputs = attention(AttentionCase((1, 3, 5), (1, 3, 4), has_cls=False), torch.float32, Guarded())
    inputs[3][..., 5] = -torch.inf  # a column w of the key grid
    grad = incoming(run(reference, inputs))
    kernel, eager = gradients(run, ops, inputs, grad), gradients(run, reference, inputs, grad)
    for k, e in zip(kernel, eager, strict=True):
        torch.testing.assert_close(k, e, rtol=1e-4, atol=1e-5)


def test_large_scores_keep_their_gradients(backend) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (4 * torch.randn(1, 2, n, 32, generator=generator) for n in (150, 100, 100))

    def run(which: Any, tensors: Sequence[Tensor]) -> Tensor:
        out = which.pooling_attention(*tensors, scale=32**-0.5, has_cls=False)
        return out[0] if isinstance(out, tuple) else out

    grad = incoming(run(reference, [q, k, v]))
    kernel = gradients(run, ops, [q, k, v], grad)
    eager = gradients(run, reference, [q, k, v], grad)
    oracle = gradients(run, reference, [t.double() for t in (q, k, v)], grad.double())
    for found, e, o in zip(kernel, eager, oracle, strict=True):
        assert_within_rule(found, e, o, "gradient")


def test_the_log_sum_exp_has_a_gradient(backend) -> None:
    case = AttentionCase((1, 3, 5), (2, 3, 4))
    inputs = case.inputs(Guarded(), torch.float64)
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    grads = [torch.randn(1, case.num_q, 2, 96, dtype=torch.float64), torch.randn(1, 2, case.num_q, dtype=torch.float64)]
    names = list(leaves.values())
    for used in ([0, 1], [1]):
        found, expected = (
            torch.autograd.grad(
                [which.pooling_attention(**leaves, **case.options)[i] for i in used],
                names,
                [grads[i] for i in used],
                allow_unused=True,
            )
            for which in (backends.get(backend), reference)
        )
        for k, e in zip(found, expected, strict=True):
            torch.testing.assert_close(k, torch.zeros_like(k) if e is None else e, rtol=0, atol=1e-11)


def test_an_empty_batch_gives_empty_and_zero_gradients(backend, poisoned_memory) -> None:
    for run, inputs in (
        pooling(PoolCase((2, 5, 5), pool("conv", K3, S1), batch=0), torch.float32, Guarded()),
        pooling(PoolCase((2, 5, 5), pool("conv", K3, S1), batch=0, per_channel=True), torch.float32, Guarded()),
        attention(AttentionCase((2, 3, 3), (2, 3, 3), batch=0), torch.float32, Guarded()),
    ):
        for grad, tensor in zip(gradients(run, ops, inputs, run(ops, inputs)), inputs, strict=True):
            assert grad.shape == tensor.shape and not grad.any()
    tables = [torch.randn(2, 3, 8, requires_grad=True) for _ in range(3)]
    rows = ops.decomposed_rel_pos(
        torch.randn(0, 2, 8, 8),
        (2, 2, 2),
        (3, 3, 3),
        **dict(zip(("table_t", "table_h", "table_w"), tables, strict=True)),
    )
    rows.sum().backward()
    assert all(table.grad is not None and not table.grad.any() for table in tables)


def test_no_queries_give_zero_gradients_for_keys_and_values(backend, poisoned_memory) -> None:
    q = torch.randn(1, 2, 0, 8)
    k, v = (torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(2))
    ops.pooling_attention(q, k, v).sum().backward()
    assert k.grad is not None and not k.grad.any() and v.grad is not None and not v.grad.any()


# ---- Second order ----

TINY = {
    "pooling": lambda make: pooling(
        PoolCase((1, 3, 2), pool("conv", (1, 3, 3), (1, 2, 2)), heads=1, head_dim=3), torch.float64, make
    ),
    "attention": lambda make: attention(AttentionCase((1, 1, 2), (1, 2, 1), heads=1, head_dim=3), torch.float64, make),
    "rel pos": lambda make: rel_pos(((1, 2, 2), (1, 1, 2), 2), True, torch.float64, make),
}


@pytest.mark.parametrize("name", TINY)
def test_second_derivatives_pass_gradgradcheck(name: str, backend) -> None:
    run, inputs = TINY[name](Guarded())
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    assert torch.autograd.gradgradcheck(lambda *tensors: run(ops, tensors), leaves, nondet_tol=0.0)


def test_second_derivatives_of_three_branches_pass_gradgradcheck(backend) -> None:
    x = [torch.randn(1, 1, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    weight = torch.randn(3, 1, 1, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(a: Tensor, b: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            ops.qkv_pool3d_norm(
                [a, b],
                [(1, 2, 2)] * 2,
                [pool("conv", (1, 2, 2), S1), pool("avg", (1, 2, 2), S1)],
                weight=[w, None],
                norm_weight=[None, None],
                norm_bias=[None, None],
                norm_eps=[1e-2, None],
            )
        )

    assert torch.autograd.gradgradcheck(run, (*x, weight), nondet_tol=0.0)


def test_the_first_derivatives_are_the_same_with_and_without_a_graph_of_them(backend) -> None:
    for make in SOME.values():
        run, inputs = make(Guarded())
        leaves = [t.detach().requires_grad_() for t in inputs]
        grad = incoming(run(reference, inputs))
        plain = torch.autograd.grad(run(ops, leaves), leaves, grad)
        with_graph = torch.autograd.grad(run(ops, leaves), leaves, grad, create_graph=True)
        assert all(g.requires_grad for g in with_graph) or run(ops, leaves).grad_fn is not None
        for a, b in zip(plain, with_graph, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# ---- The ops themselves ----

OPCHECK = {
    "qkv_pool3d_norm_backward": lambda x: (
        [x(1, 2, 13, 8), x(1, 2, 2, 8)],
        [x(1, 2, 13, 8), x(1, 2, 9, 8)],
        (3, 2, 2, 2, 2, 2),
        True,
        ["conv", "max"],
        (3, 3, 3, 2, 2, 2),
        (1, 1, 1, 2, 2, 2),
        (1, 1, 1, 0, 0, 0),
        [x(8, 1, 3, 3, 3), x(0)],
        [x(8), x(0)],
        [x(8), x(0)],
        [1e-6, -1.0],
        [True, True, False, True, True, False, False, False],
    ),
    "decomposed_rel_pos_backward": lambda x: (
        x(1, 2, 9, 6),
        x(1, 2, 9, 8),
        (2, 2, 2),
        (1, 2, 3),
        True,
        x(2, 1, 8),
        None,
        x(2, 3, 8),
        [True, False, False, True],
    ),
    "pooling_attention_backward": lambda x: (
        x(1, 5, 2, 8),
        x(1, 2, 5),
        x(1, 2, 5, 8),
        x(1, 2, 9, 8),
        x(1, 2, 9, 8),
        x(1, 2, 5, 6),
        x(1, 2, 5) + 10,
        (2, 2, 2),
        0.3,
        True,
        "no_cls",
        [True, True, False, True],
    ),
}


@pytest.mark.skipif("cpu" not in backends.available(), reason="the C++ library is not there")
@pytest.mark.parametrize("name", OPCHECK)
def test_opcheck(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    arguments = OPCHECK[name](lambda *shape: torch.randn(*shape, generator=generator))
    torch.library.opcheck(getattr(torch.ops.mvit_kernels, name).default, arguments)


@pytest.mark.skipif("cpu" not in backends.available(), reason="the C++ library is not there")
def test_the_backward_op_itself_says_that_it_is_not_differentiable() -> None:
    arguments = OPCHECK["decomposed_rel_pos_backward"](lambda *shape: torch.randn(*shape, requires_grad=True))
    q_grad, *_ = torch.ops.mvit_kernels.decomposed_rel_pos_backward(*arguments)
    with pytest.raises(RuntimeError, match=r"decomposed_rel_pos_backward is not differentiable: .* create_graph=True"):
        q_grad.sum().backward()


@pytest.mark.skipif("cpu" not in backends.available(), reason="the C++ library is not there")
def test_a_gradient_that_does_not_fit_is_refused() -> None:
    def x(*shape: int) -> Tensor:
        return torch.randn(*shape)

    for name, place, wrong in (
        ("pooling_attention_backward", 0, x(1, 4, 2, 8)),
        ("pooling_attention_backward", 6, x(1, 2, 4)),
        ("decomposed_rel_pos_backward", 0, x(1, 2, 9, 5)),
        ("qkv_pool3d_norm_backward", 0, [x(1, 2, 12, 8), x(1, 2, 2, 8)]),
        ("qkv_pool3d_norm_backward", 12, [True]),
    ):
        arguments = list(OPCHECK[name](x))
        arguments[place] = wrong
        with pytest.raises(RuntimeError, match=name):
            getattr(torch.ops.mvit_kernels, name)(*arguments)
