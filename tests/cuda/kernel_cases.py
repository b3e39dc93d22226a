"""Problems for the tests of the CUDA kernels: one table for the forward and the backward of an op."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.ops import pool_cases
from tests.ops.attention_cases import AttentionCase
from tests.ops.pool_cases import K3, S1, PoolCase, pool

HALF = [torch.float16, torch.bfloat16]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

ATTENTION = [
    AttentionCase((1, 1, 1), (1, 1, 1), has_cls=False, rel_pos=False, heads=1),
    AttentionCase((1, 1, 1), (1, 1, 1), heads=1),
    AttentionCase((2, 7, 7), (2, 7, 7)),
    AttentionCase((1, 3, 5), (1, 13, 11), head_dim=80, residual="all"),
    AttentionCase((1, 8, 9), (1, 5, 5), head_dim=72, has_cls=False, residual="all", batch=2),
    AttentionCase((1, 7, 7), (1, 13, 5), head_dim=64, residual="none"),
    AttentionCase((1, 7, 7), (1, 13, 17), head_dim=64, residual="none"),
    AttentionCase((3, 5, 7), (1, 2, 2), head_dim=48, rel_pos=False),
    AttentionCase((1, 5, 6), (1, 8, 8), head_dim=128, has_cls=False, residual="none", rel_pos=False),
    AttentionCase((1, 6, 6), (1, 8, 8), head_dim=128, has_cls=False, residual="none", rel_pos=False),
    AttentionCase((1, 6, 6), (2, 7, 5), head_dim=128, heads=1),
    AttentionCase((1, 6, 6), (2, 7, 11), head_dim=128, heads=1),
    AttentionCase((1, 3, 3), (1, 9, 9), head_dim=8, heads=3),
    AttentionCase((1, 3, 3), (1, 9, 9), head_dim=104, heads=1),
    AttentionCase((2, 3, 3), (2, 3, 3), batch=0),
]
ATTENTION_OF_PUBLISHED_LAYERS = [
    AttentionCase((1, 8, 9), (8, 7, 7), heads=1, rel_pos=False),  # MViTv1-B blocks 0 and 4 to 12: Nk = 393
    AttentionCase((1, 5, 8), (8, 7, 7), heads=1),  # MViTv2-S
    AttentionCase((1, 6, 6), (1, 7, 7), head_dim=72, has_cls=False, residual="all"),  # MViTv2-L, image
]


def attention_of_more_than_a_few_numbers(batch: int) -> list[AttentionCase]:
    """Both tables, for float32. Where a case has one query or key, the error of one number is a matter of luck."""
    return [
        replace(case, batch=batch, heads=4) if case.num_q <= 2 else case
        for case in ATTENTION + ATTENTION_OF_PUBLISHED_LAYERS
    ]


ODD_POOLING = [case for case in pool_cases.ODD_CASES if case.head_dim % 8 == 0]
POOLING = [
    *ODD_POOLING,
    PoolCase((2, 9, 9), pool("conv", (1, 3, 3), (1, 8, 8)), head_dim=72),
    PoolCase((3, 5, 7), pool("conv", K3, (2, 2, 2)), head_dim=48, batch=2, has_cls=False),
    PoolCase((1, 7, 5), pool("avg", (1, 3, 3), (1, 2, 2)), head_dim=80),
    PoolCase((2, 5, 3), pool("max", K3, (1, 2, 2)), head_dim=128),
    PoolCase((3, 3, 5), pool("conv", (1, 1, 1), S1), head_dim=64, affine=False),
    PoolCase((2, 3, 11), pool("conv", (2, 2, 7), (1, 1, 2)), head_dim=96, heads=3, per_channel=True),
    PoolCase((1, 5, 5), pool("conv", K3, (1, 2, 2)), heads=1, head_dim=136, norm=False),
]
assert {case.head_dim for case in POOLING} >= {48, 64, 72, 80, 96, 128}


def three_poolings(skip: PoolCase) -> list[PoolCase]:
    """Of q, of k or v, and of the skip path: branches of one call."""
    q, kv = (PoolCase((2, 9, 7), pool("conv", K3, stride)) for stride in ((1, 2, 2), (1, 4, 4)))
    return [q, kv, skip]


REL_POS = [
    ((1, 1, 1), (1, 1, 1), 8, False),
    ((2, 5, 7), (2, 3, 4), 96, True),
    ((3, 4, 4), (1, 7, 7), 72, False),
    ((1, 7, 3), (4, 2, 14), 128, True),
    ((2, 3, 9), (1, 9, 17), 48, True),
    ((1, 2, 3), (2, 2, 2), 136, False),
]
"""Grids of queries and of keys, head dim, cls token or not."""
