"""The backward CUDA kernels of pooling and relative position, run by the emulation, against the float64 reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mvit_kernels import reference
from mvit_kernels.problem import tokens
from tests.cuda.emulated import Aligned
from tests.cuda.emulated_tokens_backward import decomposed_rel_pos_backward, qkv_pool3d_norm_backward
from tests.cuda.kernel_cases import DTYPES, POOLING, REL_POS, three_poolings
from tests.cuda.layers import LAYERS, LEAST_SHARED_BYTES, branch
from tests.numerics import assert_gradients_within_rule, assert_within_rule, double
from tests.ops.pool_cases import K3, S1, PoolCase, pool

ALL = (True, True, True, True)
CASES = [replace(case, batch=min(case.batch, 2)) for case in POOLING]


class Branches:
    """The tensors of a call with a case per branch, and its gradients by the kernels and by the reference."""

    def __init__(self, cases: Sequence[PoolCase], dtype: torch.dtype, seed: int = 0) -> None:
        self.cases = cases
        self.make = Aligned(seed)
        inputs = [case.inputs(self.make, dtype) for case in cases]
        self.x, *self.parameters = ([i[name] for i in inputs] for name in ("x", "weight", "norm_weight", "norm_bias"))
        self.thw, self.pool = [c.thw for c in cases], [c.pool for c in cases]
        self.options = {"has_cls": cases[0].has_cls, "norm_eps": [c.options["norm_eps"] for c in cases]}
        self.grad = [
            self.make(c.batch, c.heads, int(c.has_cls) + tokens(c.pool.out_grid(c.thw)), c.head_dim, dtype=dtype)
            for c in cases
        ]

    def kernel(
        self, emulation, needs: Sequence[Sequence[bool]] | None = None, seed: int = 0
    ) -> list[list[Tensor | None]]:
        names = ("weight", "norm_weight", "norm_bias")
        found = qkv_pool3d_norm_backward(
            *(emulation, self.grad, self.x, self.thw, self.pool),
            **dict(zip(names, self.parameters, strict=True)),
            **self.options,
            needs=needs or [ALL] * len(self.cases),
            seed=seed,
        )
        self.make.assert_untouched()
        return found

    def reference(self, cast: Callable[[list[Tensor]], list[Tensor]] = list) -> list[list[Tensor | None]]:
        found = []
        for i, case in enumerate(self.cases):
            inputs = [self.x[i], *(p[i] for p in self.parameters)]
            leaves = [None if t is None else t.detach().requires_grad_() for t in cast(inputs)]
            x, weight, norm_weight, norm_bias = leaves
            out = reference.pool3d_norm(
                *(x, case.thw, case.pool),
                **{"weight": weight, "norm_weight": norm_weight, "norm_bias": norm_bias, **case.options},
            )
            wanted = [leaf for leaf in leaves if leaf is not None]
            gradients = iter(torch.autograd.grad(out, wanted, cast([self.grad[i]])[0]))
            found.append([None if leaf is None else next(gradients) for leaf in leaves])
        return found

    def check(self, emulation, seed: int = 0) -> None:
        kernel, eager, oracle = self.kernel(emulation, seed=seed), self.reference(), self.reference(double)
        for k, e, o in zip(kernel, eager, oracle, strict=True):
            assert [t is None for t in k] == [t is None for t in e]
            assert_gradients_within_rule([triple for triple in zip(k, e, o, strict=True) if triple[0] is not None])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_pooling_gradients_match_float64(emulation, case: PoolCase, dtype: torch.dtype) -> None:
    Branches([case], dtype).check(emulation)


@pytest.mark.parametrize("seed", range(5))
def test_three_branches_in_one_call_in_every_order_of_threads(emulation, seed: int) -> None:
    skip = PoolCase((2, 9, 7), pool("max", (1, 3, 3), (1, 2, 2)), norm=False)
    Branches(three_poolings(skip), torch.bfloat16, seed).check(emulation, seed)


# Enough tokens for several blocks and parts of every sum.
MANY = [
    PoolCase((4, 28, 28), pool("conv", (1, 3, 3), S1), batch=1, heads=2, head_dim=48),
    PoolCase((2, 20, 20), pool("conv", (1, 3, 3), (1, 2, 2)), heads=2, head_dim=16, per_channel=True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", MANY, ids=str)
def test_sums_over_many_tokens_match_float64(emulation, case: PoolCase, dtype: torch.dtype) -> None:
    Branches([case], dtype).check(emulation)


def test_the_same_bits_come_out_again_in_every_order_of_threads(emulation) -> None:
    branches = Branches([MANY[1], MANY[1]], torch.float32)
    first = branches.kernel(emulation)
    for seed in range(1, 4):
        again = branches.kernel(emulation, seed=seed)
        assert all(torch.equal(a, b) for f, g in zip(first, again, strict=True) for a, b in zip(f, g, strict=True))


@pytest.mark.parametrize("mode", ["conv", "max"])
def test_any_choice_of_gradients_gives_the_same_ones(emulation, mode: str) -> None:
    branches = Branches([PoolCase((2, 5, 7), pool(mode, K3, (1, 2, 2)), head_dim=48)], torch.bfloat16)
    (every,) = branches.kernel(emulation)
    for choice in itertools.product([False, True], repeat=4):
        (some,) = branches.kernel(emulation, [choice])
        for needed, one, all_of_it in zip(choice, some, every, strict=True):
            assert (one is None) == (not needed or all_of_it is None)
            assert one is None or torch.equal(one, all_of_it)


@pytest.mark.parametrize("parameter_dtype", DTYPES, ids=str)
def test_parameters_of_another_dtype_get_gradients_of_theirs(emulation, parameter_dtype: torch.dtype) -> None:
    branches = Branches([PoolCase((2, 7, 7), pool("conv", K3, S1))], torch.bfloat16)
    branches.parameters = [[p[0].to(parameter_dtype)] for p in branches.parameters]
    kernel, eager, oracle = branches.kernel(emulation), branches.reference(), branches.reference(double)
    assert [g.dtype for g in kernel[0]] == [torch.bfloat16, *[parameter_dtype] * 3]
    for k, e, o in zip(kernel[0], eager[0], oracle[0], strict=True):
        assert_within_rule(k, e, o, "gradient", torch.bfloat16)


def test_a_contiguous_x_gets_the_same_gradient_as_a_strided_one(emulation) -> None:
    branches = Branches([PoolCase((2, 5, 7), pool("conv", K3, (1, 2, 2)), batch=2)], torch.bfloat16)
    ((strided, *_),) = branches.kernel(emulation)
    branches.x, branches.grad = ([t[0].contiguous()] for t in (branches.x, branches.grad))
    ((contiguous, *_),) = branches.kernel(emulation)
    assert contiguous.is_contiguous() and not strided.is_contiguous() and torch.equal(strided, contiguous)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_max_pooling_gives_the_gradient_to_the_winner_pytorch_picks(emulation, dtype: torch.dtype) -> None:
    case = PoolCase((3, 9, 9), pool("max", K3, (1, 2, 2)), heads=2, head_dim=24, has_cls=False, norm=False)
    branches = Branches([case], dtype)
    x = torch.randint(0, 3, branches.x[0].shape, generator=torch.Generator().manual_seed(0)).to(dtype)  # ties
    x[0, 0, 40:42, 3] = torch.nan
    x[0, 1, :, 5] = -torch.inf
    branches.x = [x]
    branches.grad = [torch.arange(branches.grad[0].numel()).remainder(8).view(branches.grad[0].shape).to(dtype)]
    assert torch.equal(branches.kernel(emulation)[0][0], branches.reference()[0][0])


@pytest.mark.parametrize("where", ["x", "grad"])
def test_nan_reaches_the_gradients_it_reaches_in_eager(emulation, where: str) -> None:
    branches = Branches([PoolCase((2, 5, 7), pool("conv", K3, (1, 2, 2)), head_dim=48)], torch.float32)
    tensor = getattr(branches, where)[0]
    tensor[0, 1, 9, 5] = torch.nan
    branches.make.buffers.clear()
    for i, (k, e) in enumerate(zip(branches.kernel(emulation)[0], branches.reference()[0], strict=True)):
        # The gradient of a row that is not finite meets the padding in eager's weight; the kernel reads no padding.
        if (where, i) != ("grad", 1):
            assert torch.equal(k.isnan(), e.isnan())


def test_an_empty_batch_gives_zero_gradients_to_parameters(emulation) -> None:
    branches = Branches([PoolCase((2, 5, 5), pool("conv", K3, S1), batch=0)], torch.float32)
    (found,) = branches.kernel(emulation)
    assert found[0].numel() == 0 and not any(g.any() for g in found[1:])


def test_a_maximum_over_more_taps_than_a_winner_can_name_is_refused(emulation) -> None:
    case = PoolCase((1, 1, 65537), pool("max", (1, 1, 65537), S1, (0, 0, 0)), heads=1, head_dim=8, norm=False)
    with pytest.raises(RuntimeError, match="no kernel for a window this large"):
        Branches([case], torch.bfloat16).kernel(emulation)


# ---- How a problem is divided ----

POOLINGS = sorted(
    {
        (pooling, layer.grid, layer.heads, layer.head_dim, layer.has_cls)
        for _, layer in LAYERS
        for pooling in (layer.pool_q, layer.pool_kv)
        if pooling is not None
    },
    key=str,
)


@pytest.mark.parametrize("batch", [1, 8])
def test_every_published_layer_fills_a_gpu_and_needs_little_scratch_memory(emulation, batch: int) -> None:
    for pooling, thw, heads, dim, has_cls in POOLINGS:
        parameter = (1 << 20, "float32")
        gradients = {
            **{"grad": 256, "grad_strides": (0, 0, 0), "grad_x": 256, "grad_x_strides": (0, 0, 0)},
            **{f"grad_{name}": parameter for name in ("weight", "norm_weight", "norm_bias")},
        }
        of = branch(thw, pooling, **gradients)
        plan = emulation.pool3d_norm_backward_plan("bfloat16", batch, heads, dim, has_cls, [of])
        (blocks,) = plan["branches"]
        taps = tokens(pooling.kernel)
        outputs = batch * heads * (has_cls + tokens(pooling.out_grid(thw)))
        assert plan["bytes"] <= 2 * dim * outputs + (16 << 20), "dy, and sums of a few MiB"
        assert blocks["shared_bytes"] <= LEAST_SHARED_BYTES
        # No block is without outputs, and small layers are still cut into many.
        if pooling.kernel[1:] == (3, 3):
            assert blocks["weight"] == 0
            assert min(132, outputs // 56) <= blocks["weight_tiles"] <= batch * heads * blocks["tiles"]
            assert blocks["parts"] == blocks["weight_tiles"] <= 264, "a row of sums for each"
        else:
            lines = pooling.kernel[0] * pooling.kernel[1] * -(-pooling.kernel[2] // 3)
            assert 1 <= blocks["parts"] <= -(-outputs // 256) and blocks["weight_tiles"] == 0
            assert min(512, outputs // 96) <= blocks["weight"] == lines * blocks["parts"]
        assert blocks["parameters"] == taps + 2
        assert batch * heads <= blocks["outputs"] <= outputs / 6, "a block has some lines of 7 outputs"


# ---- Relative position ----


class RelPos:
    def __init__(self, grid_q, grid_k, dim, has_cls, dtype, table_dtype=None, *, batch=2, seed=0) -> None:
        self.make = Aligned(seed)
        self.grids, self.has_cls = (grid_q, grid_k), has_cls
        num_q = int(has_cls) + tokens(grid_q)
        self.q = self.make(batch, 3, num_q, dim, dtype=dtype)
        self.tables = [
            self.make(nq, nk, dim, dtype=table_dtype or dtype) for nq, nk in zip(grid_q, grid_k, strict=True)
        ]
        rows = self.make(batch, 3, num_q, sum(grid_k) + 3)  # float32, strided, at any offset
        self.grad = rows[..., 1 : 1 + sum(grid_k)]

    def kernel(self, emulation, needs: Sequence[bool] = ALL, seed: int = 0) -> list[Tensor | None]:
        found = decomposed_rel_pos_backward(
            *(emulation, self.grad, self.q, *self.grids),
            has_cls=self.has_cls,
            tables=self.tables,
            needs=needs,
            seed=seed,
        )
        self.make.assert_untouched()
        return found

    def reference(self, cast=list) -> list[Tensor | None]:
        leaves = [None if t is None else t.detach().requires_grad_() for t in cast([self.q, *self.tables])]
        names = dict(zip(("table_t", "table_h", "table_w"), leaves[1:], strict=True))
        rows = reference.decomposed_rel_pos(leaves[0], *self.grids, has_cls=self.has_cls, **names)
        found = iter(torch.autograd.grad(rows, [t for t in leaves if t is not None], self.grad.to(rows.dtype)))
        return [None if leaf is None else next(found) for leaf in leaves]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", REL_POS, ids=str)
def test_relative_position_gradients_match_float64(emulation, case, dtype: torch.dtype) -> None:
    problem = RelPos(*case, dtype)
    results = zip(problem.kernel(emulation), problem.reference(), problem.reference(double), strict=True)
    assert_gradients_within_rule(results)


def test_tables_of_another_dtype_and_an_absent_one(emulation) -> None:
    problem = RelPos((2, 3, 5), (2, 4, 3), 96, True, torch.bfloat16, torch.float32)
    problem.tables[0] = None
    found = problem.kernel(emulation)
    assert found[1] is None and found[2].dtype == torch.float32
    for k, e, o in zip(found, problem.reference(), problem.reference(double), strict=True):
        if k is not None:
            assert_within_rule(k, e, o, "gradient", torch.bfloat16)


def test_any_choice_of_relative_position_gradients_gives_the_same_ones_in_every_order(emulation) -> None:
    problem = RelPos((3, 7, 9), (2, 9, 3), 48, True, torch.float32)
    every = problem.kernel(emulation)
    for seed, choice in enumerate(itertools.product([False, True], repeat=4)):
        some = problem.kernel(emulation, choice, seed)
        assert [one is not None for one in some] == list(choice)
        assert all(one is None or torch.equal(one, other) for one, other in zip(some, every, strict=True))


def test_an_empty_batch_gives_zero_gradients_to_tables(emulation) -> None:
    found = RelPos((2, 2, 2), (3, 3, 3), 8, True, torch.float16, batch=0).kernel(emulation)
    assert found[0].numel() == 0 and not any(g.any() for g in found[1:])
