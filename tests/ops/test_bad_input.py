"""Bad input: one line that names the argument, its value and what would be right, before any kernel runs."""

from __future__ import annotations

import math

import pytest
import torch

from mvit_kernels import ops
from mvit_kernels.problem import Pool

CONV = Pool("conv", (3, 3, 3), (1, 2, 2), (1, 1, 1))
AVG = Pool("avg", (1, 2, 2), (1, 2, 2), (0, 0, 0))


def pool_arguments(**changes):
    arguments = {
        "x": torch.zeros(1, 2, 33, 8),
        "thw": (2, 4, 4),
        "pool": CONV,
        "has_cls": True,
        "weight": torch.zeros(8, 1, 3, 3, 3),
        "norm_weight": torch.zeros(8),
        "norm_bias": torch.zeros(8),
        "norm_eps": 1e-6,
    }
    return {**arguments, **changes}


def attention_arguments(**changes):
    arguments = {
        "q": torch.zeros(1, 2, 9, 8),
        "k": torch.zeros(1, 2, 5, 8),
        "v": torch.zeros(1, 2, 5, 8),
        "rel_pos": torch.zeros(1, 2, 9, 5),
        "grid_k": (1, 2, 2),
        "has_cls": True,
    }
    return {**arguments, **changes}


def rel_pos_arguments(**changes):
    arguments = {
        "q": torch.zeros(1, 2, 9, 8),
        "grid_q": (2, 2, 2),
        "grid_k": (1, 2, 2),
        "has_cls": True,
        "table_t": torch.zeros(2, 1, 8),
        "table_h": torch.zeros(2, 2, 8),
        "table_w": torch.zeros(2, 2, 8),
    }
    return {**arguments, **changes}


def with_pool(**changes):
    fields = {"mode": CONV.mode, "kernel": CONV.kernel, "stride": CONV.stride, "padding": CONV.padding}
    return pool_arguments(pool=Pool(**{**fields, **changes}))


POOL_ERRORS = [
    (pool_arguments(x=torch.zeros(2, 33, 8)), ValueError, "x has shape (2, 33, 8)"),
    (pool_arguments(x=torch.zeros(1, 2, 33, 8, dtype=torch.int64)), TypeError, "x has dtype torch.int64"),
    (pool_arguments(x=[[0.0]]), TypeError, "x is a list"),
    (pool_arguments(thw=(2, 4, 5)), ValueError, "thw (2, 4, 5) has 40 tokens (+1 cls), but x has 33 tokens in dim 2"),
    (pool_arguments(thw=(2, 4)), ValueError, "thw is (2, 4), three positive ints"),
    (pool_arguments(thw=(2, 4, 0)), ValueError, "thw is (2, 4, 0)"),
    (pool_arguments(thw=None), ValueError, "thw is None"),
    (pool_arguments(has_cls=False), ValueError, "has 32 tokens, but x has 33"),
    (with_pool(mode="median"), ValueError, "mode is 'median', one of conv, avg, max is right"),
    (with_pool(stride=(1, 0, 2)), ValueError, "stride is (1, 0, 2)"),
    (with_pool(stride=(1, -2, 2)), ValueError, "stride is (1, -2, 2)"),
    (with_pool(kernel=(3, 3, 0)), ValueError, "kernel is (3, 3, 0)"),
    (with_pool(kernel=(3, 3)), ValueError, "kernel is (3, 3)"),
    (with_pool(padding=(-1, 1, 1)), ValueError, "padding is (-1, 1, 1)"),
    (with_pool(kernel=(9, 9, 9)), ValueError, "kernel (9, 9, 9) with padding (1, 1, 1) is larger than thw (2, 4, 4)"),
    (
        pool_arguments(pool=Pool("max", (2, 2, 2), (2, 2, 2), (2, 0, 0)), weight=None),
        ValueError,
        "padding is (2, 0, 0)",
    ),
    (pool_arguments(weight=None), ValueError, "weight is None"),
    (pool_arguments(weight=torch.zeros(7, 1, 3, 3, 3)), ValueError, "weight has shape (7, 1, 3, 3, 3)"),
    (pool_arguments(weight=torch.zeros(8, 1, 1, 3, 3)), ValueError, "weight has shape (8, 1, 1, 3, 3)"),
    (pool_arguments(weight=torch.zeros(8, 1, 3, 3, 3).int()), TypeError, "weight has dtype torch.int32"),
    (pool_arguments(pool=AVG), ValueError, "weight was given, None is right for mode 'avg'"),
    (pool_arguments(norm_weight=torch.zeros(9)), ValueError, "norm_weight has shape (9,), (8,) is right"),
    (pool_arguments(norm_bias=torch.zeros(1, 8)), ValueError, "norm_bias has shape (1, 8)"),
    (pool_arguments(norm_eps=None), ValueError, "norm_eps is None but a norm weight or bias was given"),
    (pool_arguments(norm_eps=math.nan), ValueError, "norm_eps is nan"),
    (pool_arguments(norm_eps=math.inf), ValueError, "norm_eps is inf"),
    (pool_arguments(norm_eps=-1e-6), ValueError, "norm_eps is -1e-06"),
    (pool_arguments(weight=torch.zeros(8, 1, 3, 3, 3, device="meta")), ValueError, "weight is on meta, cpu like x"),
]

ATTENTION_ERRORS = [
    (attention_arguments(q=torch.zeros(2, 9, 8)), ValueError, "q has shape (2, 9, 8)"),
    (attention_arguments(k=torch.zeros(1, 2, 5, 7)), ValueError, "k has shape (1, 2, 5, 7), (1, 2, 5, 8) is right"),
    (attention_arguments(v=torch.zeros(1, 2, 6, 8)), ValueError, "v has shape (1, 2, 6, 8), (1, 2, 5, 8) is right"),
    (attention_arguments(v=torch.zeros(1, 2, 5, 8).double()), TypeError, "v has dtype torch.float64"),
    (attention_arguments(k=torch.zeros(2, 2, 5, 8)), ValueError, "k has shape (2, 2, 5, 8)"),
    (attention_arguments(k=torch.zeros(1, 2, 5, 8, device="meta")), ValueError, "k is on meta"),
    (attention_arguments(grid_k=None), ValueError, "grid_k is None"),
    (attention_arguments(grid_k=(1, 2, 3)), ValueError, "grid_k (1, 2, 3) has 6 tokens (+1 cls), but k has 5"),
    (attention_arguments(rel_pos=torch.zeros(1, 2, 9, 4)), ValueError, "rel_pos has shape (1, 2, 9, 4)"),
    (attention_arguments(rel_pos=torch.zeros(1, 2, 9, 5).double()), TypeError, "rel_pos has dtype torch.float64"),
    (attention_arguments(residual="cls"), ValueError, "residual is 'cls', one of none, all, no_cls is right"),
    (attention_arguments(scale=math.nan), ValueError, "scale is nan"),
    (
        attention_arguments(k=torch.zeros(1, 2, 0, 8), v=torch.zeros(1, 2, 0, 8), rel_pos=None),
        ValueError,
        "k has 0 tokens",
    ),
]

REL_POS_ERRORS = [
    (rel_pos_arguments(q=torch.zeros(9, 8)), ValueError, "q has shape (9, 8)"),
    (rel_pos_arguments(grid_q=(2, 2, 3)), ValueError, "grid_q (2, 2, 3) has 12 tokens (+1 cls), but q has 9"),
    (rel_pos_arguments(grid_k=(1, 2, 0)), ValueError, "grid_k is (1, 2, 0)"),
    (rel_pos_arguments(table_h=torch.zeros(2, 3, 8)), ValueError, "table_h has shape (2, 3, 8), (2, 2, 8) is right"),
    (rel_pos_arguments(table_w=torch.zeros(2, 2, 8).int()), TypeError, "table_w has dtype torch.int32"),
    (rel_pos_arguments(table_t=torch.zeros(2, 1, 8, device="meta")), ValueError, "table_t is on meta"),
]


@pytest.mark.parametrize(
    ("function", "arguments", "error", "text"),
    [(ops.pool3d_norm, *case) for case in POOL_ERRORS]
    + [(ops.pooling_attention, *case) for case in ATTENTION_ERRORS]
    + [(ops.decomposed_rel_pos, *case) for case in REL_POS_ERRORS],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_one_line_names_the_argument(function, arguments, error, text: str) -> None:
    with pytest.raises(error) as caught:
        function(**arguments)
    message = str(caught.value)
    assert message.startswith(function.__name__) and text in message and "\n" not in message


def test_branches_of_different_length_batch_or_dtype_are_refused() -> None:
    x, none = torch.zeros(1, 1, 4, 8), [None, None]
    options = {"weight": none, "norm_weight": none, "norm_bias": none, "norm_eps": none}
    with pytest.raises(ValueError, match="one entry per branch"):
        ops.qkv_pool3d_norm([x], [(1, 2, 2)] * 2, [AVG] * 2, **options)
    with pytest.raises(ValueError, match=r"x\[1\] is torch.float64 of batch 1"):
        ops.qkv_pool3d_norm([x, x.double()], [(1, 2, 2)] * 2, [AVG] * 2, **options)
    with pytest.raises(ValueError, match="branch 1: thw"):
        ops.qkv_pool3d_norm([x, x], [(1, 2, 2), (1, 2, 3)], [AVG] * 2, **options)
