"""decomposed_rel_pos against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mvit_kernels import ops, reference
from mvit_kernels.problem import Grid, tokens
from tests.numerics import Guarded, assert_within_rule, double

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
GRIDS = [
    ((2, 7, 7), (2, 7, 7), 96),
    ((1, 1, 1), (1, 1, 1), 1),
    ((1, 14, 14), (1, 7, 7), 72),
    ((4, 5, 3), (2, 10, 17), 80),
    ((3, 13, 11), (5, 2, 19), 64),
    ((2, 4, 4), (20, 33, 3), 5),
]


def make_inputs(make: Guarded, grid_q: Grid, grid_k: Grid, dim: int, has_cls: bool, dtype: torch.dtype) -> list[Tensor]:
    q = make(2, 3, int(has_cls) + tokens(grid_q), dim, dtype=dtype)
    return [q, *(make(nq, nk, dim, dtype=dtype) for nq, nk in zip(grid_q, grid_k, strict=True))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("has_cls", [True, False])
@pytest.mark.parametrize(("grid_q", "grid_k", "dim"), GRIDS, ids=str)
def test_rows_match_float64(
    grid_q: Grid, grid_k: Grid, dim: int, has_cls: bool, dtype, backend, poisoned_memory
) -> None:
    make = Guarded()
    inputs = make_inputs(make, grid_q, grid_k, dim, has_cls, dtype)

    def run(function, tensors):
        q, t, h, w = tensors
        return function(q, grid_q, grid_k, has_cls=has_cls, table_t=t, table_h=h, table_w=w)

    rows = run(ops.decomposed_rel_pos, inputs)
    make.assert_untouched()
    eager, oracle = (run(reference.decomposed_rel_pos, tensors) for tensors in (inputs, double(inputs)))
    assert_within_rule(rows, eager, oracle)


@pytest.mark.parametrize("absent", ["t", "h", "w"])
def test_an_absent_axis_gives_zeros_and_leaves_the_others(absent: str, backend, poisoned_memory) -> None:
    grid_q, grid_k = (2, 4, 5), (2, 3, 6)
    q, *tables = make_inputs(Guarded(), grid_q, grid_k, 24, True, torch.float32)
    given = {f"table_{axis}": table for axis, table in zip("thw", tables, strict=True)}
    every = ops.decomposed_rel_pos(q, grid_q, grid_k, has_cls=True, **given)
    some = ops.decomposed_rel_pos(q, grid_q, grid_k, has_cls=True, **{**given, f"table_{absent}": None})
    for axis, a, b in zip("thw", every.split(grid_k, -1), some.split(grid_k, -1), strict=True):
        assert torch.equal(b, torch.zeros_like(b) if axis == absent else a)


def test_the_cls_row_is_zero(backend, poisoned_memory) -> None:
    q, t, h, w = make_inputs(Guarded(), (1, 2, 2), (1, 2, 2), 8, True, torch.float32)
    rows = ops.decomposed_rel_pos(q, (1, 2, 2), (1, 2, 2), has_cls=True, table_t=t, table_h=h, table_w=w)
    assert not rows[:, :, 0].any() and rows[:, :, 1:].all()
