"""The CUDA attention kernel that pools q itself, run by the emulation, against the float64 reference."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mvit_kernels import reference
from mvit_kernels.problem import Grid, tokens
from tests.cuda.emulated import Aligned, pooled_query_attention
from tests.cuda.kernel_cases import HALF
from tests.numerics import assert_within_rule
from tests.ops.pool_cases import K3, S1, PoolCase, pool


@dataclass(frozen=True)
class Case:
    pooling: PoolCase
    grid_k: Grid
    axes: str = "thw"
    """The axes that have a relative-position table."""
    residual: str = "no_cls"
    scale: float = 0.1
    tables_in_float32: bool = False

    def __str__(self) -> str:
        return f"{self.pooling}-k{'x'.join(map(str, self.grid_k))}-{self.axes or 'norelpos'}-{self.residual}"


S2 = (1, 2, 2)

CASES = [
    Case(PoolCase((2, 7, 7), pool("conv", K3, S1)), (2, 7, 7)),
    Case(PoolCase((2, 14, 14), pool("conv", K3, S2), heads=1), (8, 7, 7)),
    Case(PoolCase((3, 9, 13), pool("conv", K3, S1), heads=1), (1, 5, 5), axes="", residual="none"),
    Case(PoolCase((1, 1, 1), pool("conv", K3, S1)), (1, 1, 1)),
    Case(PoolCase((1, 1, 1), pool("conv", K3, S1), has_cls=False, heads=3), (1, 1, 1), axes=""),
    Case(PoolCase((1, 8, 9), pool("conv", (1, 3, 3), S1), head_dim=72, has_cls=False, batch=2), (1, 7, 5), axes="hw"),
    Case(PoolCase((1, 12, 11), pool("avg", (1, 3, 3), S2), head_dim=48, norm=False), (1, 9, 9), residual="all"),
    Case(PoolCase((2, 6, 5), pool("max", K3, S1), head_dim=64, heads=1), (1, 4, 4), axes="t", scale=-0.3),
    Case(PoolCase((1, 9, 9), pool("conv", (1, 9, 9), S1), head_dim=80, affine=False), (1, 3, 23), residual="all"),
    Case(PoolCase((2, 5, 5), pool("conv", K3, S1), head_dim=128, per_channel=True), (2, 5, 7), tables_in_float32=True),
    Case(PoolCase((1, 6, 7), pool("conv", (1, 3, 3), S1), head_dim=8, heads=1), (1, 5, 5), scale=0.0),
    Case(PoolCase((1, 4, 4), pool("conv", K3, S1), batch=0), (1, 5, 5)),
]


def check(emulation, case: Case, dtype: torch.dtype, seed: int = 0) -> None:
    pooling, make = case.pooling, Aligned(seed)
    thw, grid_q, cls = pooling.thw, pooling.pool.out_grid(pooling.thw), int(pooling.has_cls)
    inputs: dict[str, Tensor | None] = dict(pooling.inputs(make, dtype))
    for name in ("k", "v"):
        inputs[name] = make(pooling.batch, pooling.heads, cls + tokens(case.grid_k), pooling.head_dim, dtype=dtype)
    for axis, num_q, num_k in zip("thw", grid_q, case.grid_k, strict=True):
        table_dtype = torch.float32 if case.tables_in_float32 else dtype
        inputs[axis] = make(num_q, num_k, pooling.head_dim, dtype=table_dtype) if axis in case.axes else None
    options = {"scale": case.scale, "has_cls": pooling.has_cls, "residual": case.residual}

    def run(tensors: dict[str, Tensor | None]) -> tuple[Tensor, Tensor]:
        """The three ops one after the other."""
        norm = {name: [tensors[name]] for name in ("weight", "norm_weight", "norm_bias")}
        (q,) = reference.qkv_pool3d_norm(
            *([tensors["x"]], [thw], [pooling.pool]),
            **norm,
            has_cls=pooling.has_cls,
            norm_eps=[pooling.options["norm_eps"]],
        )
        rows = None
        if case.axes:
            tables = {f"table_{axis}": None if tensors[axis] is None else tensors[axis].to(q.dtype) for axis in "thw"}
            rows = reference.decomposed_rel_pos(q, grid_q, case.grid_k, has_cls=pooling.has_cls, **tables)
        return reference.pooling_attention(q, tensors["k"], tensors["v"], rel_pos=rows, grid_k=case.grid_k, **options)

    out, lse = pooled_query_attention(
        emulation,
        *(inputs["x"], thw, pooling.pool, inputs["k"], inputs["v"]),
        **{name: inputs[name] for name in ("weight", "norm_weight", "norm_bias")},
        norm_eps=pooling.options["norm_eps"],
        tables=[inputs[axis] for axis in "thw"],
        grid_k=case.grid_k,
        **options,
        seed=seed,
    )
    make.assert_untouched()
    eager, eager_lse = run(inputs)
    oracle, oracle_lse = run({name: None if x is None else x.double() for name, x in inputs.items()})
    assert_within_rule(out, eager, oracle)
    assert_within_rule(lse, eager_lse, oracle_lse, dtype=dtype)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_that_pools_its_queries_matches_float64(emulation, case, dtype) -> None:
    check(emulation, case, dtype)


@pytest.mark.parametrize("seed", range(1, 5))
def test_attention_that_pools_its_queries_is_right_in_every_order_of_threads(emulation, seed) -> None:
    check(emulation, Case(PoolCase((1, 12, 13), pool("conv", (1, 3, 3), S1), heads=1), (1, 5, 5)), torch.bfloat16, seed)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 63, 64, 127, 128, 129, 130])
def test_queries_of_a_tile_are_those_of_its_strips(emulation, width) -> None:
    case = Case(PoolCase((1, 2, width), pool("conv", (1, 3, 3), S1), heads=1, head_dim=48), (1, 2, 3), axes="w")
    check(emulation, case, torch.float16)


def test_more_entries_than_the_product_has_room_for_are_refused(emulation) -> None:
    with pytest.raises(RuntimeError, match="no kernel for this many relative-position entries"):
        check(emulation, Case(PoolCase((1, 2, 2), pool("conv", (1, 3, 3), S1)), (1, 24, 24)), torch.float16)
