"""The CUDA kernels for pooling and relative position, run by the emulation, against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mvit_kernels import reference
from tests.cuda.emulated import Aligned, decomposed_rel_pos, qkv_pool3d_norm
from tests.cuda.kernel_cases import DTYPES, POOLING, REL_POS, three_poolings
from tests.numerics import assert_within_rule, double
from tests.ops.pool_cases import K3, S1, PoolCase, pool


def check_pool(emulation, cases: list[PoolCase], dtype: torch.dtype, seed: int = 0) -> None:
    """All cases as branches of one call."""
    make = Aligned(seed)
    inputs = [case.inputs(make, dtype) for case in cases]
    x, weight, norm_weight, norm_bias = (
        [i[name] for i in inputs] for name in ("x", "weight", "norm_weight", "norm_bias")
    )
    thw, pools, eps = [c.thw for c in cases], [c.pool for c in cases], [c.options["norm_eps"] for c in cases]
    options = {"has_cls": cases[0].has_cls, "norm_eps": eps}

    def run(function, *first: object, cast=list, **more: object) -> list[Tensor]:
        parameters = {"weight": cast(weight), "norm_weight": cast(norm_weight), "norm_bias": cast(norm_bias)}
        return function(*first, cast(x), thw, pools, **parameters, **options, **more)

    outs = run(qkv_pool3d_norm, emulation, seed=seed)
    make.assert_untouched()
    eager, oracle = run(reference.qkv_pool3d_norm), run(reference.qkv_pool3d_norm, cast=double)
    for out, e, o in zip(outs, eager, oracle, strict=True):
        assert_within_rule(out, e, o)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", POOLING, ids=str)
def test_pooling_matches_float64(emulation, case: PoolCase, dtype: torch.dtype) -> None:
    check_pool(emulation, [case], dtype)


@pytest.mark.parametrize("seed", range(3))
def test_three_poolings_in_one_launch(emulation, seed: int) -> None:
    skip = PoolCase((2, 9, 7), pool("max", K3, S1), norm=False)
    check_pool(emulation, three_poolings(skip), torch.bfloat16, seed)


@pytest.mark.parametrize("mode", ["conv", "avg", "max"])
def test_nan_reaches_the_windows_it_is_in_and_no_other(emulation, mode: str) -> None:
    case = PoolCase((1, 6, 6), pool(mode, (1, 3, 3), (1, 2, 2)), heads=1, head_dim=16, norm=False)
    inputs = case.inputs(Aligned(), torch.float32)
    inputs["x"][0, 0, 1 + 14, 5] = torch.nan
    lists = {name: [inputs[name]] for name in ("weight", "norm_weight", "norm_bias")}
    arguments = ([inputs["x"]], [case.thw], [case.pool])
    (out,) = qkv_pool3d_norm(emulation, *arguments, **lists, has_cls=True, norm_eps=[None])
    (expected,) = reference.qkv_pool3d_norm(*arguments, **lists, has_cls=True, norm_eps=[None])
    torch.testing.assert_close(out, expected, equal_nan=True)


@pytest.mark.parametrize("table_dtype", [None, torch.float32], ids=["tables of q's dtype", "float32 tables"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("grid_q", "grid_k", "dim", "has_cls"), REL_POS)
def test_relative_position_matches_float64(emulation, grid_q, grid_k, dim, has_cls, dtype, table_dtype) -> None:
    make = Aligned()
    q = make(2, 3, int(has_cls) + grid_q[0] * grid_q[1] * grid_q[2], dim, dtype=dtype)
    tables = [make(nq, nk, dim, dtype=table_dtype or dtype) for nq, nk in zip(grid_q, grid_k, strict=True)]
    tables[0] = None if dim == 72 else tables[0]
    rows = decomposed_rel_pos(emulation, q, grid_q, grid_k, has_cls=has_cls, tables=tables)
    make.assert_untouched()

    def run(q: Tensor, tables: list[Tensor | None]) -> Tensor:
        names = dict(zip(("table_t", "table_h", "table_w"), tables, strict=True))
        return reference.decomposed_rel_pos(q, grid_q, grid_k, has_cls=has_cls, **names)

    eager = run(q, [t if t is None else t.to(dtype) for t in tables])
    assert_within_rule(rows, eager, run(q.double(), double(tables)), dtype=dtype)
