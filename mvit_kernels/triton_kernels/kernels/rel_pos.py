"""Decomposed relative position, forward and backward.

    rel_pos_forward       one program: one query position of BLOCK_M (batch, head) pairs, which share their three table
                          rows. rows = q x tables^T, written once, side by side
    rel_pos_grad_q        the same mapping: grad_q = grad rows x tables
    rel_pos_grad_table    one program: the queries of one coordinate of one axis, or a part of them. Parts are added up
                          by the caller, in a fixed order

Work: 2 * S * D FLOP a query and pass, S = Kt + Kh + Kw. Traffic: q once, the rows once, the tables from L2.
"""

import triton
import triton.language as tl

from .primitives import coordinates, kernel, store_rows


@triton.jit
def _tables(
    t_ptr, h_ptr, w_ptr, position, grids,
    FIRST: tl.constexpr, ENTRIES: tl.constexpr, COLUMN: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
    HAS: tl.constexpr,
):  # fmt: skip
    """(ENTRIES, WIDTH): the table rows of one query position, the t entries first, then h and w; zero where none."""
    s = (FIRST + tl.arange(0, ENTRIES))[:, None]
    d = (COLUMN + tl.arange(0, WIDTH))[None, :]
    q_h, q_w, k_t, k_h, k_w = grids
    t, h, w = coordinates(position, q_h, q_w)
    found = tl.zeros([ENTRIES, WIDTH], t_ptr.dtype.element_ty)
    if HAS & 1:
        found += tl.load(t_ptr + (t * k_t + s) * D + d, mask=(s < k_t) & (d < D), other=0.0)
    if HAS & 2:
        found += tl.load(h_ptr + (h * k_h + s - k_t) * D + d, mask=(s >= k_t) & (s < k_t + k_h) & (d < D), other=0.0)
    if HAS & 4:
        in_w = (s >= k_t + k_h) & (s < k_t + k_h + k_w)
        found += tl.load(w_ptr + (w * k_w + s - k_t - k_h) * D + d, mask=in_w & (d < D), other=0.0)
    return found


@triton.jit
def _bases(pairs, heads, stride_b, stride_h, UNIT: tl.constexpr):
    return ((pairs // heads).to(tl.int64) * stride_b + (pairs % heads).to(tl.int64) * stride_h) * UNIT


@triton.jit
def _load(ptr, offsets, keep, FIRST: tl.constexpr, WIDTH: tl.constexpr, D):
    d = FIRST + tl.arange(0, WIDTH)
    return tl.load(ptr + offsets[:, None] + d[None, :], mask=keep[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _row_part(
    q0, q1, t_ptr, h_ptr, w_ptr, position, grids, FIRST: tl.constexpr, ENTRIES: tl.constexpr, D: tl.constexpr,
    D0: tl.constexpr, D1: tl.constexpr, HAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tables = _tables(t_ptr, h_ptr, w_ptr, position, grids, FIRST, ENTRIES, 0, D0, D, HAS)
    rows = tl.dot(q0.to(tables.dtype), tl.trans(tables), input_precision=PRECISION)
    if D1 > 0:
        tables = _tables(t_ptr, h_ptr, w_ptr, position, grids, FIRST, ENTRIES, D0, D1, D, HAS)
        rows = tl.dot(q1.to(tables.dtype), tl.trans(tables), rows, input_precision=PRECISION)
    return rows


@kernel
def rel_pos_forward(
    q_ptr, t_ptr, h_ptr, w_ptr, rows_ptr, q_stride_b, q_stride_h, q_stride_n, heads, pairs_all, num_q, entries,
    q_h, q_w, k_t, k_h, k_w, UNIT: tl.constexpr, ROWS_UNIT: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr,
    CLS: tl.constexpr, HAS: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    query = tl.program_id(0) % num_q
    pairs = tl.program_id(0) // num_q * BLOCK_M + tl.arange(0, BLOCK_M)
    keep = pairs < pairs_all
    at = _bases(pairs, heads, q_stride_b, q_stride_h, UNIT) + query.to(tl.int64) * q_stride_n * UNIT
    q0 = _load(q_ptr, at, keep, 0, D0, D)
    q1 = q0
    if D1 > 0:
        q1 = _load(q_ptr, at, keep, D0, D1, D)
    stride = entries // ROWS_UNIT * ROWS_UNIT
    out = rows_ptr + query.to(tl.int64) * stride
    grids = (q_h, q_w, k_t, k_h, k_w)
    grid_query = tl.maximum(query - CLS, 0)
    counts = query >= CLS
    rows = _row_part(q0, q1, t_ptr, h_ptr, w_ptr, grid_query, grids, 0, S0, D, D0, D1, HAS, PRECISION)
    store_rows(out, tl.where(counts, rows, 0.0), pairs, num_q.to(tl.int64) * stride, pairs_all, 0, S0, entries)
    if S1 > 0:
        rows = _row_part(q0, q1, t_ptr, h_ptr, w_ptr, grid_query, grids, S0, S1, D, D0, D1, HAS, PRECISION)
        store_rows(out, tl.where(counts, rows, 0.0), pairs, num_q.to(tl.int64) * stride, pairs_all, S0, S1, entries)


@triton.jit
def _grad_part(
    g0, g1, t_ptr, h_ptr, w_ptr, position, grids, COLUMN: tl.constexpr, WIDTH: tl.constexpr, S0: tl.constexpr,
    S1: tl.constexpr, D: tl.constexpr, HAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tables = _tables(t_ptr, h_ptr, w_ptr, position, grids, 0, S0, COLUMN, WIDTH, D, HAS).to(tl.float32)
    grad = tl.dot(g0, tables, input_precision=PRECISION)
    if S1 > 0:
        tables = _tables(t_ptr, h_ptr, w_ptr, position, grids, S0, S1, COLUMN, WIDTH, D, HAS)
        grad = tl.dot(g1, tables.to(tl.float32), grad, input_precision=PRECISION)
    return grad


@kernel
def rel_pos_grad_q(
    g_ptr, t_ptr, h_ptr, w_ptr, grad_ptr, g_stride_b, g_stride_h, g_stride_n, heads, pairs_all, num_q, entries,
    q_h, q_w, k_t, k_h, k_w, ROWS_UNIT: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    S0: tl.constexpr, S1: tl.constexpr, CLS: tl.constexpr, HAS: tl.constexpr,
    BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of q, contiguous (B, H, Nq, D); zero for the cls query."""
    query = tl.program_id(0) % num_q
    pairs = tl.program_id(0) // num_q * BLOCK_M + tl.arange(0, BLOCK_M)
    keep = (pairs < pairs_all) & (query >= CLS)
    at = _bases(pairs, heads, g_stride_b, g_stride_h, ROWS_UNIT) + query.to(tl.int64) * (g_stride_n * ROWS_UNIT)
    g0 = _load(g_ptr, at, keep, 0, S0, entries)
    g1 = g0
    if S1 > 0:
        g1 = _load(g_ptr, at, keep, S0, S1, entries)
    out = grad_ptr + query.to(tl.int64) * D
    position = tl.maximum(query - CLS, 0)
    grids = (q_h, q_w, k_t, k_h, k_w)
    grad = _grad_part(g0, g1, t_ptr, h_ptr, w_ptr, position, grids, 0, D0, S0, S1, D, HAS, PRECISION)
    store_rows(out, grad, pairs, num_q.to(tl.int64) * D, pairs_all, 0, D0, D)
    if D1 > 0:
        grad = _grad_part(g0, g1, t_ptr, h_ptr, w_ptr, position, grids, D0, D1, S0, S1, D, HAS, PRECISION)
        store_rows(out, grad, pairs, num_q.to(tl.int64) * D, pairs_all, D0, D1, D)


@kernel
def rel_pos_grad_table(
    q_ptr, g_ptr, sums_ptr, q_stride_b, q_stride_h, q_stride_n, g_stride_b, g_stride_h, g_stride_n, heads, queries,
    part_queries, offset, keys, extent, inner, others, UNIT: tl.constexpr, D: tl.constexpr, D0: tl.constexpr,
    D1: tl.constexpr, BLOCK_K: tl.constexpr, CLS: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of one axis' table, (part, extent, keys, D) float32.

    `extent` coordinates along the axis, `others` grid positions with each, `inner` of them in a run; `queries` is
    B * H * others; `keys` entries from `offset` on in a row.
    """
    coordinate = tl.program_id(0) % extent
    part = tl.program_id(0) // extent
    first = part * part_queries
    k = tl.arange(0, BLOCK_K)
    acc0 = tl.zeros([BLOCK_K, D0], tl.float32)
    acc1 = tl.zeros([BLOCK_K, D1 if D1 > 0 else 1], tl.float32)
    for start in range(first, min(first + part_queries, queries), BLOCK_M):
        i = start + tl.arange(0, BLOCK_M)
        keep = i < queries
        pairs = i // others
        other = i % others
        query = CLS + other // inner * (extent * inner) + coordinate * inner + other % inner
        g_at = _bases(pairs, heads, g_stride_b, g_stride_h, 1) + query.to(tl.int64) * g_stride_n + offset
        g = tl.load(g_ptr + g_at[:, None] + k[None, :], mask=keep[:, None] & (k < keys)[None, :], other=0.0)
        q_at = _bases(pairs, heads, q_stride_b, q_stride_h, UNIT) + query.to(tl.int64) * (q_stride_n * UNIT)
        acc0 = tl.dot(tl.trans(g), _load(q_ptr, q_at, keep, 0, D0, D).to(tl.float32), acc0, input_precision=PRECISION)
        if D1 > 0:
            q1 = _load(q_ptr, q_at, keep, D0, D1, D).to(tl.float32)
            acc1 = tl.dot(tl.trans(g), q1, acc1, input_precision=PRECISION)
    base = sums_ptr + (part.to(tl.int64) * extent + coordinate) * keys * D
    store_rows(base, acc0, k, D, keys, 0, D0, D)
    if D1 > 0:
        store_rows(base, acc1, k, D, keys, D0, D1, D)
