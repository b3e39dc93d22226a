"""Pieces of kernels used by more than one of them."""

import triton
import triton.language as tl


@triton.jit
def load_rows(
    base, rows, stride, bound, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, MASKED: tl.constexpr
):
    """Columns FIRST to FIRST + WIDTH of rows of D values; zero outside D and, where MASKED, for rows >= bound."""
    d = FIRST + tl.arange(0, WIDTH)
    at = base + rows.to(tl.int64)[:, None] * stride + d[None, :]
    if FIRST + WIDTH > D:
        if MASKED:
            return tl.load(at, mask=(rows < bound)[:, None] & (d < D)[None, :], other=0.0)
        return tl.load(at, mask=(d < D)[None, :], other=0.0)
    if MASKED:
        return tl.load(at, mask=(rows < bound)[:, None], other=0.0)
    return tl.load(at)


@triton.jit
def store_rows(base, values, rows, stride, bound, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """The converse of `load_rows`, masked by rows >= bound."""
    d = FIRST + tl.arange(0, WIDTH)
    at = base + rows.to(tl.int64)[:, None] * stride + d[None, :]
    tl.store(at, values.to(base.dtype.element_ty), mask=(rows < bound)[:, None] & (d < D)[None, :])


@triton.jit
def one_hot(entries, keys, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, CLS: tl.constexpr):
    """Which of the Kt + Kh + Kw entries of a rel-pos row belong to which key: three per key, none for cls.

    `entries` and `keys` are broadcast against each other. The product of rel-pos rows with this matrix is the bias;
    the product of score gradients with its transpose is the gradient of the rows. Both run on tensor cores.
    """
    g = keys - CLS
    t = g // (KH * KW)
    h = (g // KW) % KH
    w = g % KW
    hit = (entries == t) | (entries == KT + h) | (entries == KT + KH + w)
    return hit & (g >= 0) & (g < KT * KH * KW)


@triton.jit
def load_rel_pos(
    base, queries, stride, num_q, FIRST: tl.constexpr, WIDTH: tl.constexpr, S: tl.constexpr, CLS: tl.constexpr, DTYPE
):
    """Rel-pos rows (queries, WIDTH), zero for the cls query, ready for the product with `one_hot`.

    -inf becomes the lowest finite number: in that product it would meet zeros. +inf and NaN give NaN rows, as they do
    in the softmax anyway.
    """
    s = FIRST + tl.arange(0, WIDTH)
    keep = ((queries >= CLS) & (queries < num_q))[:, None] & (s < S)[None, :]
    rows = tl.load(base + queries.to(tl.int64)[:, None] * stride + s[None, :], mask=keep, other=0.0)
    lowest: tl.constexpr = -6.0e4 if tl.float16 == DTYPE else -1.0e38
    return tl.where(rows < lowest, lowest, rows).to(DTYPE)


@triton.jit
def _minus_infinities(base, queries, stride, num_q, lower, upper, S0: tl.constexpr, S1: tl.constexpr):
    """How many of the entries lower to upper of each query's rel-pos row are -inf."""
    s = tl.arange(0, S0)
    at = base + queries.to(tl.int64)[:, None] * stride
    keep = (queries < num_q)[:, None] & ((s >= lower) & (s < upper))[None, :]
    count = tl.sum((tl.load(at + s[None, :], mask=keep, other=0.0) == float("-inf")).to(tl.int32), 1)
    if S1 > 0:
        s1 = S0 + tl.arange(0, S1)
        keep1 = (queries < num_q)[:, None] & ((s1 >= lower) & (s1 < upper))[None, :]
        count += tl.sum((tl.load(at + s1[None, :], mask=keep1, other=0.0) == float("-inf")).to(tl.int32), 1)
    return count


@triton.jit
def excludes_every_key(
    base, queries, stride, num_q, S: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
):  # fmt: skip
    """Queries whose rel-pos row is -inf along a whole axis, so that every key of the grid has the score -inf."""
    t = _minus_infinities(base, queries, stride, num_q, 0, KT, S0, S1)
    h = _minus_infinities(base, queries, stride, num_q, KT, KT + KH, S0, S1)
    w = _minus_infinities(base, queries, stride, num_q, KT + KH, S, S0, S1)
    return (t == KT) | (h == KH) | (w == KW)
