"""The order of rows, columns and depth in the products of attention, each by itself: numbers that are exact in TF32.

Each test is blind to the other two orders, so the one that fails names what is wrong.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.cuda.emulated import pooling_attention

ORDER = pytest.mark.parametrize("order", ["rows", "columns", "depth"])


def matrices(order: str, rows: int, columns: int, depth: int) -> tuple[Tensor, Tensor, Tensor]:
    """a (rows, depth), b (depth, columns) and a b, which differs where an index of that order is not in its place.

    Of the sums of products of 1, 2, ... with 1, 2, ... in any order, only the sum of squares is that large.
    """
    a, b = torch.ones(rows, depth), torch.ones(depth, columns)
    if order == "rows":
        a *= torch.arange(1.0, rows + 1)[:, None]
    elif order == "columns":
        b *= torch.arange(1.0, columns + 1)
    else:
        number = torch.arange(1.0, depth + 1)
        a, b = a * number, b * number[:, None]
    return a, b, a @ b


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("keep", [False, True], ids=["loaded", "kept"])
@pytest.mark.parametrize("tf32", [False, True], ids=["ieee", "tf32"])
@pytest.mark.parametrize("columns", [16, 32])
@pytest.mark.parametrize("dim", [48, 64, 80, 96, 128])
@ORDER
def test_float32_products_keep_the_order(emulation, order, dim, columns, tf32, keep, seed) -> None:
    def run(a: Tensor, b: Tensor, p: Tensor) -> list[Tensor]:
        flat = [x.flatten().tolist() for x in (a, b, p)]
        found = emulation.float32_products(dim, columns, tf32, keep, *flat, seed)
        return [torch.tensor(x).view(16, -1) for x in found]

    a, b, scores = matrices(order, 16, columns, dim)
    assert torch.equal(run(a, b.T, torch.zeros(16, columns))[0], scores)
    p, b, outputs = matrices(order, 16, dim, columns)
    assert torch.equal(run(torch.zeros(16, dim), b, p)[1], outputs)


DTYPES = [(torch.float16, False), (torch.bfloat16, False), (torch.float32, False), (torch.float32, True)]


@pytest.mark.parametrize(("dtype", "tf32"), DTYPES)
@pytest.mark.parametrize("grid_k", [(1, 1, 90), (3, 5, 6)], ids=["gathered", "one product"])
@ORDER
def test_relative_position_keeps_the_order(emulation, order, grid_k, dtype, tf32) -> None:
    """Scores are the bias alone, read back from probabilities (v is the identity) and the log-sum-exp."""
    queries, keys, axes = 70, 90, range(3)
    number = [torch.arange(float(n)) for n in grid_k]
    rows = torch.zeros(1, 1, queries, sum(grid_k))
    if order == "rows":  # the same for all keys: what the log-sum-exp alone shows
        rows[..., : grid_k[0]] = torch.arange(float(queries))[:, None] / 16
    elif order == "columns":  # the same for all queries
        rows[..., -grid_k[2] :] = 4 * number[2] / grid_k[2]
    else:  # each entry another one, so that an axis or a place in it shows
        rows[...] = torch.cat([(1 + axis) * number[axis] / grid_k[axis] for axis in axes])
    of_axis = rows.split(grid_k, dim=-1)
    bias = sum(
        x.unflatten(-1, [n if i == axis else 1 for i in axes])
        for axis, (x, n) in enumerate(zip(of_axis, grid_k, strict=True))
    )
    bias = bias.flatten(-3)
    assert bias.shape[-1] == keys

    none = torch.zeros(1, 1, keys, 96, dtype=dtype)
    options = {"scale": 1.0, "has_cls": False, "residual": "none", "tf32": tf32}
    v = torch.eye(keys, 96, dtype=dtype)[None, None]
    out, lse = pooling_attention(emulation, none[:, :, :queries], none, v, rel_pos=rows, grid_k=grid_k, **options)
    scores = out[0, :, 0, :keys].double().log() + lse[0, 0, :, None]
    torch.testing.assert_close(scores, bias[0, 0].double(), rtol=0, atol=0.03)
