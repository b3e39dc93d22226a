"""Pooling attention, backward: two kernels, no atomics.

Scores and probabilities are computed again a tile at a time, from the log-sum-exp; neither is ever in memory.

    attention_grad_q    one program: BLOCK_M queries. First pass over the keys: delta = sum_j P dP. Second pass:
                        dS = P (dP - delta + grad_lse); grad_q = scale * dS k; grad_rel_pos = dS x one-hot^T, which
                        forms its sums over T, H and W on the tensor cores; the residual adds grad_out to grad_q
    attention_grad_kv   one program: BLOCK_N keys and a part of the queries. grad_v = P^T grad_out;
                        grad_k = scale * dS^T q. Parts are added up by the caller, in a fixed order

Work: 5 products of (queries, keys, D) for q, 4 for k and v, each with the rel-pos product where there is one.
"""

import triton
import triton.language as tl

from .attention import biased_scores
from .primitives import gathered_bias, kernel, load_rel_pos, load_rows, one_hot, store_rows


@triton.jit
def _probabilities(
    q0, q1, r0, r1, rows_at, g0, g1, lse2, k_base, v_base, start, num_k, k_stride, v_stride, scale2, grid,
    N: tl.constexpr, MASKED: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, S0: tl.constexpr,
    S1: tl.constexpr, CLS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P and dP = grad_out v^T of a tile (queries, keys), and the k tile's two parts."""
    keys = start + tl.arange(0, N)
    k0 = load_rows(k_base, keys, k_stride, num_k, 0, D0, D, MASKED)
    v0 = load_rows(v_base, keys, v_stride, num_k, 0, D0, D, MASKED)
    k1, v1 = k0, v0
    if D1 > 0:
        k1 = load_rows(k_base, keys, k_stride, num_k, D0, D1, D, MASKED)
        v1 = load_rows(v_base, keys, v_stride, num_k, D0, D1, D, MASKED)
    # float32 products run on the ordinary units, where the one with the one-hot matrix would take S multiplications a
    # score, and registers for as many entries.
    GATHER: tl.constexpr = S0 > 0 and q0.dtype == tl.float32
    if GATHER:
        rows_base, queries, rows_stride, num_q = rows_at
        s = biased_scores(q0, q1, k0, k1, r0, r1, keys, scale2, grid, D1, 0, 0, CLS, PRECISION)
        s += gathered_bias(rows_base, queries, rows_stride, num_q, keys, num_k, grid, CLS) * 1.4426950408889634
    else:
        s = biased_scores(q0, q1, k0, k1, r0, r1, keys, scale2, grid, D1, S0, S1, CLS, PRECISION)
    p = tl.exp2(s - lse2[:, None])
    if MASKED:
        p = tl.where((keys < num_k)[None, :], p, 0.0)
    dp = tl.dot(g0, tl.trans(v0), input_precision=PRECISION)
    if D1 > 0:
        dp = tl.dot(g1, tl.trans(v1), dp, input_precision=PRECISION)
    return p, dp, k0, k1


@triton.jit
def _delta_step(
    delta, total, q0, q1, r0, r1, rows_at, g0, g1, lse2, k_base, v_base, start, num_k, k_stride, v_stride, scale2, grid,
    N: tl.constexpr, MASKED: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, S0: tl.constexpr,
    S1: tl.constexpr, CLS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    p, dp, _, _ = _probabilities(
        q0, q1, r0, r1, rows_at, g0, g1, lse2, k_base, v_base, start, num_k, k_stride, v_stride, scale2, grid,
        N, MASKED, D, D0, D1, S0, S1, CLS, PRECISION,
    )  # fmt: skip
    return delta + tl.sum(p * dp, 1), total + tl.sum(p, 1)


@triton.jit
def _grad_q_step(
    acc0, acc1, rows0, rows1, delta, q0, q1, r0, r1, rows_at, g0, g1, lse2, k_base, v_base, start, num_k, k_stride,
    v_stride, scale2, grid, N: tl.constexpr, MASKED: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    S0: tl.constexpr, S1: tl.constexpr, CLS: tl.constexpr,
    ROWS_GRAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    p, dp, k0, k1 = _probabilities(
        q0, q1, r0, r1, rows_at, g0, g1, lse2, k_base, v_base, start, num_k, k_stride, v_stride, scale2, grid,
        N, MASKED, D, D0, D1, S0, S1, CLS, PRECISION,
    )  # fmt: skip
    ds = (p * (dp - delta[:, None])).to(k0.dtype)
    acc0 = tl.dot(ds, k0, acc0, input_precision=PRECISION)
    if D1 > 0:
        acc1 = tl.dot(ds, k1, acc1, input_precision=PRECISION)
    if ROWS_GRAD:
        keys = start + tl.arange(0, N)
        hot = one_hot(tl.arange(0, S0)[None, :], keys[:, None], grid, CLS).to(k0.dtype)
        rows0 = tl.dot(ds, hot, rows0, input_precision=PRECISION)
        if S1 > 0:
            hot1 = one_hot(S0 + tl.arange(0, S1)[None, :], keys[:, None], grid, CLS).to(k0.dtype)
            rows1 = tl.dot(ds, hot1, rows1, input_precision=PRECISION)
    return acc0, acc1, rows0, rows1


@kernel
def attention_grad_q(
    q_ptr, k_ptr, v_ptr, rows_ptr, g_ptr, lse_ptr, grad_lse_ptr, delta_ptr, grad_q_ptr, grad_rows_ptr,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    g_stride_b, g_stride_h, g_stride_n, rows_stride_b, rows_stride_h, rows_stride_n, heads, num_q, num_k, scale,
    entries, k_t, k_h, k_w, magic_hw, shift_hw, magic_w, shift_w,
    UNIT: tl.constexpr, ROWS_UNIT: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    S0: tl.constexpr, S1: tl.constexpr,
    CLS: tl.constexpr, RESIDUAL: tl.constexpr, LSE_GRAD: tl.constexpr, Q_GRAD: tl.constexpr, ROWS_GRAD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TAIL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of q and of the rel-pos rows; and delta - grad_lse (B, H, Nq) for `attention_grad_kv`."""
    tiles = tl.cdiv(num_q, BLOCK_M)
    tile = tl.program_id(0) % tiles
    bh = tl.program_id(0) // tiles
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    grid = (k_t, k_h, k_w, magic_hw, shift_hw, magic_w, shift_w)
    k_base = k_ptr + (b * k_stride_b + h * k_stride_h) * UNIT
    v_base = v_ptr + (b * v_stride_b + h * v_stride_h) * UNIT
    k_stride = k_stride_n * UNIT
    v_stride = v_stride_n * UNIT
    queries = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    q_base = q_ptr + (b * q_stride_b + h * q_stride_h) * UNIT
    g_base = g_ptr + (b * g_stride_b + h * g_stride_h) * UNIT
    q0 = load_rows(q_base, queries, q_stride_n * UNIT, num_q, 0, D0, D, True)
    g0 = load_rows(g_base, queries, g_stride_n * UNIT, num_q, 0, D0, D, True)
    q1, g1 = q0, g0
    if D1 > 0:
        q1 = load_rows(q_base, queries, q_stride_n * UNIT, num_q, D0, D1, D, True)
        g1 = load_rows(g_base, queries, g_stride_n * UNIT, num_q, D0, D1, D, True)
    FLOAT32: tl.constexpr = q_ptr.dtype.element_ty == tl.float32
    rows_base = rows_ptr + (b * rows_stride_b + h * rows_stride_h) * ROWS_UNIT
    rows_stride = rows_stride_n * ROWS_UNIT
    rows_at = (rows_base, queries, rows_stride, num_q)
    r0, r1 = q0, q0
    if S0 > 0 and not FLOAT32:
        r0 = load_rel_pos(rows_base, queries, rows_stride, num_q, entries, 0, S0, CLS, q0.dtype)
        r1 = r0
        if S1 > 0:
            r1 = load_rel_pos(rows_base, queries, rows_stride, num_q, entries, S0, S1, CLS, q0.dtype)
    at = bh.to(tl.int64) * num_q + queries
    lse2 = tl.load(lse_ptr + at, mask=queries < num_q, other=float("inf")) * 1.4426950408889634
    scale2 = scale * 1.4426950408889634
    # A tail as narrow as tiles get: one masked loop. The addresses of a step of its own would spill where registers
    # are short, which is where tiles are so narrow.
    MERGED: tl.constexpr = TAIL == BLOCK_N and BLOCK_N == 16
    whole = num_k if MERGED else num_k // BLOCK_N * BLOCK_N

    delta = tl.zeros([BLOCK_M], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, whole, BLOCK_N):
        delta, total = _delta_step(
            delta, total, q0, q1, r0, r1, rows_at, g0, g1, lse2, k_base, v_base, start, num_k, k_stride, v_stride,
            scale2, grid, BLOCK_N, MERGED, D, D0, D1, S0, S1, CLS, PRECISION,
        )  # fmt: skip
    if TAIL and not MERGED:
        delta, total = _delta_step(
            delta, total, q0, q1, r0, r1, rows_at, g0, g1, lse2, k_base, v_base, whole, num_k, k_stride, v_stride,
            scale2, grid, TAIL, True, D, D0, D1, S0, S1, CLS, PRECISION,
        )  # fmt: skip
    # In float32 the log-sum-exp's own rounding shows: P sums to 1 + a few eps. Half precision has no use for this.
    inverse = 1.0 / tl.where(total == 0.0, 1.0, total)
    if FLOAT32:
        delta *= inverse
    if LSE_GRAD:
        delta -= tl.load(grad_lse_ptr + at, mask=queries < num_q, other=0.0)
    tl.store(delta_ptr + at, delta, mask=queries < num_q)

    if Q_GRAD or ROWS_GRAD:
        acc0 = tl.zeros([BLOCK_M, D0], tl.float32)
        acc1 = tl.zeros([BLOCK_M, D1 if D1 > 0 else 1], tl.float32)
        rows0 = tl.zeros([BLOCK_M, S0 if S0 > 0 else 1], tl.float32)
        rows1 = tl.zeros([BLOCK_M, S1 if S1 > 0 else 1], tl.float32)
        for start in range(0, whole, BLOCK_N):
            acc0, acc1, rows0, rows1 = _grad_q_step(
                acc0, acc1, rows0, rows1, delta, q0, q1, r0, r1, rows_at, g0, g1, lse2, k_base, v_base, start, num_k,
                k_stride, v_stride, scale2, grid, BLOCK_N, MERGED, D, D0, D1, S0, S1, CLS, ROWS_GRAD, PRECISION,
            )  # fmt: skip
        if TAIL and not MERGED:
            acc0, acc1, rows0, rows1 = _grad_q_step(
                acc0, acc1, rows0, rows1, delta, q0, q1, r0, r1, rows_at, g0, g1, lse2, k_base, v_base, whole, num_k,
                k_stride, v_stride, scale2, grid, TAIL, True, D, D0, D1, S0, S1, CLS, ROWS_GRAD, PRECISION,
            )  # fmt: skip
        if FLOAT32:
            acc0 *= inverse[:, None]
            acc1 *= inverse[:, None]
            rows0 *= inverse[:, None]
            rows1 *= inverse[:, None]
        if Q_GRAD:
            acc0 *= scale
            acc1 *= scale
            if RESIDUAL:
                added = (queries >= (CLS if RESIDUAL == 2 else 0))[:, None]
                acc0 += tl.where(added, g0.to(tl.float32), 0.0)
                if D1 > 0:
                    acc1 += tl.where(added, g1.to(tl.float32), 0.0)
            grad_base = grad_q_ptr + bh.to(tl.int64) * num_q * D
            store_rows(grad_base, acc0, queries, D, num_q, 0, D0, D)
            if D1 > 0:
                store_rows(grad_base, acc1, queries, D, num_q, D0, D1, D)
        if ROWS_GRAD:
            # The cls query has no rel-pos.
            counts = (queries >= CLS)[:, None]
            stride = entries // ROWS_UNIT * ROWS_UNIT
            rows_grad_base = grad_rows_ptr + bh.to(tl.int64) * num_q * stride
            store_rows(rows_grad_base, tl.where(counts, rows0, 0.0), queries, stride, num_q, 0, S0, entries)
            if S1 > 0:
                store_rows(rows_grad_base, tl.where(counts, rows1, 0.0), queries, stride, num_q, S0, S1, entries)


@triton.jit
def _grad_kv_tile(
    key, first, last, q_base, k_base, v_base, g_base, rows_base, lse_ptr, delta_ptr, grad_k_ptr, grad_v_ptr, strides,
    num_q, num_k, scale, entries, grid, N: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, S0: tl.constexpr, S1: tl.constexpr, CLS: tl.constexpr,
    K_GRAD: tl.constexpr, V_GRAD: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """N keys from `key` on, with the queries from `first` to `last`; all pointers are those of one (batch, head)."""
    q_stride, k_stride, v_stride, g_stride, rows_stride = strides
    keys = key + tl.arange(0, N)
    k0 = load_rows(k_base, keys, k_stride, num_k, 0, D0, D, True)
    v0 = load_rows(v_base, keys, v_stride, num_k, 0, D0, D, True)
    k1, v1 = k0, v0
    if D1 > 0:
        k1 = load_rows(k_base, keys, k_stride, num_k, D0, D1, D, True)
        v1 = load_rows(v_base, keys, v_stride, num_k, D0, D1, D, True)
    scale2 = scale * 1.4426950408889634
    grad_k0 = tl.zeros([N, D0], tl.float32)
    grad_v0 = tl.zeros([N, D0], tl.float32)
    grad_k1 = tl.zeros([N, D1 if D1 > 0 else 1], tl.float32)
    grad_v1 = tl.zeros([N, D1 if D1 > 0 else 1], tl.float32)
    for start in range(first, last, BLOCK_M):
        queries = start + tl.arange(0, BLOCK_M)
        q0 = load_rows(q_base, queries, q_stride, num_q, 0, D0, D, True)
        g0 = load_rows(g_base, queries, g_stride, num_q, 0, D0, D, True)
        q1, g1 = q0, g0
        if D1 > 0:
            q1 = load_rows(q_base, queries, q_stride, num_q, D0, D1, D, True)
            g1 = load_rows(g_base, queries, g_stride, num_q, D0, D1, D, True)
        r0, r1 = q0, q0
        if S0 > 0:
            r0 = load_rel_pos(rows_base, queries, rows_stride, num_q, entries, 0, S0, CLS, q0.dtype)
            r1 = r0
            if S1 > 0:
                r1 = load_rel_pos(rows_base, queries, rows_stride, num_q, entries, S0, S1, CLS, q0.dtype)
        # +inf makes the probabilities of queries that do not exist zero.
        lse2 = tl.load(lse_ptr + queries, mask=queries < num_q, other=float("inf")) * 1.4426950408889634
        s = biased_scores(q0, q1, k0, k1, r0, r1, keys, scale2, grid, D1, S0, S1, CLS, PRECISION)
        p = tl.exp2(s - lse2[:, None])
        if V_GRAD:
            pt = tl.trans(p.to(q0.dtype))
            grad_v0 = tl.dot(pt, g0, grad_v0, input_precision=PRECISION)
            if D1 > 0:
                grad_v1 = tl.dot(pt, g1, grad_v1, input_precision=PRECISION)
        if K_GRAD:
            dp = tl.dot(g0, tl.trans(v0), input_precision=PRECISION)
            if D1 > 0:
                dp = tl.dot(g1, tl.trans(v1), dp, input_precision=PRECISION)
            delta = tl.load(delta_ptr + queries, mask=queries < num_q, other=0.0)
            ds = tl.trans((p * (dp - delta[:, None])).to(q0.dtype))
            grad_k0 = tl.dot(ds, q0, grad_k0, input_precision=PRECISION)
            if D1 > 0:
                grad_k1 = tl.dot(ds, q1, grad_k1, input_precision=PRECISION)
    if K_GRAD:
        store_rows(grad_k_ptr, grad_k0 * scale, keys, D, num_k, 0, D0, D)
        if D1 > 0:
            store_rows(grad_k_ptr, grad_k1 * scale, keys, D, num_k, D0, D1, D)
    if V_GRAD:
        store_rows(grad_v_ptr, grad_v0, keys, D, num_k, 0, D0, D)
        if D1 > 0:
            store_rows(grad_v_ptr, grad_v1, keys, D, num_k, D0, D1, D)


@kernel
def attention_grad_kv(
    q_ptr, k_ptr, v_ptr, rows_ptr, g_ptr, lse_ptr, delta_ptr, grad_k_ptr, grad_v_ptr,
    q_stride_b, q_stride_h, q_stride_n, k_stride_b, k_stride_h, k_stride_n, v_stride_b, v_stride_h, v_stride_n,
    g_stride_b, g_stride_h, g_stride_n, rows_stride_b, rows_stride_h, rows_stride_n, heads, num_q, num_k, scale,
    entries, k_t, k_h, k_w, magic_hw, shift_hw, magic_w, shift_w, tiles, batch_heads, part_queries,
    UNIT: tl.constexpr, ROWS_UNIT: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    S0: tl.constexpr, S1: tl.constexpr,
    CLS: tl.constexpr, K_GRAD: tl.constexpr, V_GRAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    TAIL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of k and v as (part, B, H, Nk, D); a part sums `part_queries` queries.

    Programs of a part: the whole key tiles, then one for each width in TAIL.
    """
    tile = tl.program_id(0) % tiles
    bh = tl.program_id(0) // tiles % batch_heads
    part = tl.program_id(0) // tiles // batch_heads
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    grid = (k_t, k_h, k_w, magic_hw, shift_hw, magic_w, shift_w)
    k_base = k_ptr + (b * k_stride_b + h * k_stride_h) * UNIT
    v_base = v_ptr + (b * v_stride_b + h * v_stride_h) * UNIT
    q_base = q_ptr + (b * q_stride_b + h * q_stride_h) * UNIT
    g_base = g_ptr + (b * g_stride_b + h * g_stride_h) * UNIT
    rows_base = rows_ptr
    if S0 > 0:
        rows_base = rows_ptr + (b * rows_stride_b + h * rows_stride_h) * ROWS_UNIT
    first = part * part_queries
    last = min(first + part_queries, num_q)
    lse_ptr += bh.to(tl.int64) * num_q
    delta_ptr += bh.to(tl.int64) * num_q
    if K_GRAD:
        grad_k_ptr += (part.to(tl.int64) * batch_heads + bh) * num_k * D
    if V_GRAD:
        grad_v_ptr += (part.to(tl.int64) * batch_heads + bh) * num_k * D
    strides = (q_stride_n * UNIT, k_stride_n * UNIT, v_stride_n * UNIT, g_stride_n * UNIT, rows_stride_n * ROWS_UNIT)
    if TAIL == BLOCK_N:
        _grad_kv_tile(
            tile * BLOCK_N, first, last, q_base, k_base, v_base, g_base, rows_base, lse_ptr, delta_ptr, grad_k_ptr,
            grad_v_ptr, strides, num_q, num_k, scale, entries, grid,
            BLOCK_N, D, D0, D1, S0, S1, CLS, K_GRAD, V_GRAD, BLOCK_M, PRECISION,
        )  # fmt: skip
    else:
        whole = num_k // BLOCK_N
        if tile < whole:
            _grad_kv_tile(
                tile * BLOCK_N, first, last, q_base, k_base, v_base, g_base, rows_base, lse_ptr, delta_ptr, grad_k_ptr,
                grad_v_ptr, strides, num_q, num_k, scale, entries, grid,
                BLOCK_N, D, D0, D1, S0, S1, CLS, K_GRAD, V_GRAD, BLOCK_M, PRECISION,
            )  # fmt: skip
        for bit in tl.static_range(0, 3):
            if TAIL & (64 >> bit):
                # Behind the tiles of the wider bits.
                if tile == whole + (TAIL >> 6) * (bit > 0) + (TAIL >> 5 & 1) * (bit > 1):
                    _grad_kv_tile(
                        whole * BLOCK_N + (TAIL & ~((128 >> bit) - 1)), first, last, q_base, k_base, v_base, g_base,
                        rows_base, lse_ptr, delta_ptr, grad_k_ptr, grad_v_ptr, strides, num_q, num_k, scale, entries,
                        grid, 64 >> bit, D, D0, D1, S0, S1, CLS, K_GRAD, V_GRAD, BLOCK_M, PRECISION,
                    )  # fmt: skip
