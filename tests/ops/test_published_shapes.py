"""Every layer shape of every published model, at batch 1: the kernel runs the whole shape, the oracle a part of it."""

from __future__ import annotations

import pytest
import torch

from mvit_kernels import models, ops, reference
from mvit_kernels.models import LayerShape
from mvit_kernels.problem import touched_grid
from tests.numerics import Guarded, assert_within_rule
from tests.ops.attention_cases import AttentionCase
from tests.ops.pool_cases import PoolCase

LAYERS: list[LayerShape] = [shape for name in models.list_models() for shape in models.layer_shapes(name)]
SAMPLED_QUERIES = 40
LOW_PRECISION_SCORES = 6_000_000
"""float16 and bfloat16 run the shapes with at most so many scores; float32 runs all."""


def attention_cases() -> list[AttentionCase]:
    cases = {
        AttentionCase(
            shape.grid_q,
            shape.grid_kv,
            heads=shape.heads,
            head_dim=shape.head_dim,
            has_cls=shape.has_cls,
            rel_pos=any(shape.table_rows),
            residual=shape.residual,
        )
        for shape in LAYERS
    }
    return sorted(cases, key=lambda case: case.heads * case.num_q * case.num_k)


def pool_cases() -> list[PoolCase]:
    """q, k and v poolings, those of k and v on their touched tokens as the layer calls them."""
    cases = set()
    for shape in LAYERS:
        common = {"heads": shape.heads, "head_dim": shape.head_dim, "has_cls": shape.has_cls}
        if shape.pool_q is not None:
            cases.add(PoolCase(shape.grid, shape.pool_q, **common))
        if shape.pool_kv is not None:
            touched = touched_grid(shape.pool_kv, shape.grid)
            cases.add(PoolCase(touched.thw, touched.pool, **common))
    return sorted(cases, key=lambda case: case.heads * case.thw[0] * case.thw[1] * case.thw[2])


def low_precision(cases: list[AttentionCase]) -> list[tuple[AttentionCase, torch.dtype]]:
    small = [case for case in cases if case.heads * case.num_q * case.num_k <= LOW_PRECISION_SCORES]
    return [(case, dtype) for case in small for dtype in (torch.bfloat16, torch.float16)]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float32) for case in attention_cases()] + low_precision(attention_cases()),
    ids=str,
)
def test_attention_matches_float64(case: AttentionCase, dtype: torch.dtype, backend, poisoned_memory) -> None:
    check_attention(case, dtype)


def check_attention(case: AttentionCase, dtype: torch.dtype, device: str = "cpu") -> None:
    inputs = case.inputs(Guarded(device=device), dtype)
    out = ops.pooling_attention(**inputs, **case.options)
    assert out.isfinite().all()
    sample = torch.randperm(case.num_q, generator=torch.Generator().manual_seed(0))[:SAMPLED_QUERIES].sort().values
    if case.has_cls:
        sample[0] = 0
    part = {**inputs, "q": inputs["q"][:, :, sample]}
    if case.rel_pos:
        part["rel_pos"] = inputs["rel_pos"][:, :, sample]
    eager, _ = reference.pooling_attention(**part, **case.options)
    part64 = {name: None if tensor is None else tensor.double() for name, tensor in part.items()}
    oracle, _ = reference.pooling_attention(**part64, **case.options)
    assert_within_rule(out[:, sample], eager, oracle)


@pytest.mark.parametrize("case", pool_cases(), ids=str)
def test_pooling_matches_float64(case: PoolCase, backend, poisoned_memory) -> None:
    check_pooling(case, torch.float32)


def check_pooling(case: PoolCase, dtype: torch.dtype, device: str = "cpu") -> None:
    inputs = case.inputs(Guarded(device=device), dtype)
    x = inputs.pop("x")
    out = ops.pool3d_norm(x, case.thw, case.pool, **inputs, **case.options)
    assert out.isfinite().all()
    last = x[:, -1:]  # heads are independent
    eager = reference.pool3d_norm(last, case.thw, case.pool, **inputs, **case.options)
    inputs64 = {name: tensor.double() for name, tensor in inputs.items()}
    oracle = reference.pool3d_norm(last.double(), case.thw, case.pool, **inputs64, **case.options)
    assert_within_rule(out[:, -1:], eager, oracle)


def test_the_cases_cover_the_published_extremes() -> None:
    queries = {case.num_q for case in attention_cases()}
    assert min(queries) == 49 and max(queries) == 121_681
    assert {case.head_dim for case in attention_cases()} == {64, 72, 96}
    assert max(case.num_k for case in attention_cases()) == 8001
