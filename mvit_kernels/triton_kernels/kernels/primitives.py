"""Pieces of kernels used by more than one of them."""

import inspect

import triton
import triton.language as tl


def kernel(function):
    """A function to launch, compiled once for all values of its numbers.

    Triton would compile again for a 1 and for multiples of 16: another batch or grid would stop the program for
    seconds. What alignment promises is in UNIT and in the pointers.
    """
    names = inspect.signature(function).parameters
    numbers = [name for name in names if not name.isupper() and not name.endswith("_ptr")]
    return triton.jit(function, do_not_specialize=numbers)


@triton.jit
def coordinates(n, height, width):
    """(t, h, w) of token `n` of a grid."""
    line = n // width
    t = line // height
    return t, line - t * height, n - line * width


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
def store_rows(base, values, rows, stride, bound, FIRST: tl.constexpr, WIDTH: tl.constexpr, D):
    """The converse of `load_rows`, masked by rows >= bound."""
    d = FIRST + tl.arange(0, WIDTH)
    at = base + rows.to(tl.int64)[:, None] * stride + d[None, :]
    tl.store(at, values.to(base.dtype.element_ty), mask=(rows < bound)[:, None] & (d < D)[None, :])


@triton.jit
def divide(n, divisor):
    """n // d for 0 <= n < 2^31, with `blocks.divisor` of d: one product where a division takes some twenty steps."""
    magic, shift = divisor
    high = tl.umulhi(n.to(tl.uint32) * 2, magic.to(tl.uint32, bitcast=True))
    return (high >> shift.to(tl.uint32)).to(tl.int32)


@triton.jit
def one_hot(entries, keys, grid, CLS: tl.constexpr):
    """Which of the Kt + Kh + Kw entries of a rel-pos row belong to which key: three per key, none for cls.

    `entries` and `keys` are broadcast against each other; `grid` is what `run_attention.rows_arguments` makes. Keys
    behind the last one get any entries, their scores are masked. The product of rel-pos rows with this matrix is the
    bias; the product of score gradients with its transpose is the gradient of the rows. Both run on tensor cores.
    """
    k_t, k_h, k_w, magic_hw, shift_hw, magic_w, shift_w = grid
    g = tl.maximum(keys - CLS, 0)
    t = divide(g, (magic_hw, shift_hw))
    g -= t * (k_h * k_w)
    h = divide(g, (magic_w, shift_w))
    w = g - h * k_w
    hit = (entries == t) | (entries == k_t + h) | (entries == k_t + k_h + w)
    if CLS:
        hit = hit & (keys > 0)
    return hit


@triton.jit
def gathered_bias(base, queries, stride, num_q, keys, num_k, grid, CLS: tl.constexpr):
    """The bias of (queries, keys) by three loads a score, zero for cls: for products that no tensor core makes."""
    k_t, k_h, k_w, magic_hw, shift_hw, magic_w, shift_w = grid
    g = tl.maximum(keys - CLS, 0)
    t = divide(g, (magic_hw, shift_hw))
    g -= t * (k_h * k_w)
    h = divide(g, (magic_w, shift_w))
    w = g - h * k_w
    keep = ((queries >= CLS) & (queries < num_q))[:, None] & ((keys >= CLS) & (keys < num_k))[None, :]
    at = base + queries.to(tl.int64)[:, None] * stride
    bias = tl.load(at + t[None, :], mask=keep, other=0.0)
    bias += tl.load(at + (k_t + h)[None, :], mask=keep, other=0.0)
    return bias + tl.load(at + (k_t + k_h + w)[None, :], mask=keep, other=0.0)


@triton.jit
def load_rel_pos(
    base, queries, stride, num_q, entries, FIRST: tl.constexpr, WIDTH: tl.constexpr, CLS: tl.constexpr, DTYPE
):
    """Rel-pos rows (queries, WIDTH), zero for the cls query, ready for the product with `one_hot`.

    -inf becomes the lowest finite number: in that product it would meet zeros. +inf and NaN give NaN rows, as they do
    in the softmax anyway.
    """
    s = FIRST + tl.arange(0, WIDTH)
    keep = ((queries >= CLS) & (queries < num_q))[:, None] & (s < entries)[None, :]
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
    base, queries, stride, num_q, grid, S0: tl.constexpr, S1: tl.constexpr,
):  # fmt: skip
    """Queries whose rel-pos row is -inf along a whole axis, so that every key of the grid has the score -inf."""
    k_t, k_h, k_w = grid[0], grid[1], grid[2]
    t = _minus_infinities(base, queries, stride, num_q, 0, k_t, S0, S1)
    h = _minus_infinities(base, queries, stride, num_q, k_t, k_t + k_h, S0, S1)
    w = _minus_infinities(base, queries, stride, num_q, k_t + k_h, k_t + k_h + k_w, S0, S1)
    return (t == k_t) | (h == k_h) | (w == k_w)
