"""Pooling attention, forward.

One program: BLOCK_M queries of one (batch, head). Key tiles of BLOCK_N, then narrow tail tiles of 64, 32 or 16 keys.

    global -> registers   q, rel-pos rows once; k, v tiles through the pipeline of `num_stages`
    tensor cores          S = q k^T per part of the head dim (96 = 64 + 32); bias = rel-pos rows x one-hot (Kt+Kh+Kw)
    registers             running max and sum in base 2, P in the input dtype; out += P v
    epilogue              / sum, + q (residual pooling), store as (B, Nq, H, D), log-sum-exp

Work per program: 2 * BLOCK_M * padded_keys * (2*D + S) FLOP, each padded as said in `blocks.py`. Traffic: the q tile
and its rel-pos rows, k and v once (from L2 for all but the first program of a head), the out tile.
"""

import triton
import triton.language as tl

from .primitives import excludes_every_key, kernel, load_rel_pos, load_rows, one_hot, store_rows


@triton.jit
def biased_scores(
    q0,
    q1,
    k0,
    k1,
    r0,
    r1,
    keys,
    scale,
    grid,
    D1: tl.constexpr,
    S0: tl.constexpr,
    S1: tl.constexpr,
    CLS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """log2(e) * (scale * q k^T + bias), (queries, keys); `scale` has log2(e) in it."""
    s = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
    if D1 > 0:
        s = tl.dot(q1, tl.trans(k1), s, input_precision=PRECISION)
    s *= scale
    if S0 > 0:
        hot = one_hot(tl.arange(0, S0)[:, None], keys[None, :], grid, CLS).to(r0.dtype)
        bias = tl.dot(r0, hot, input_precision=PRECISION)
        if S1 > 0:
            hot1 = one_hot(S0 + tl.arange(0, S1)[:, None], keys[None, :], grid, CLS).to(r0.dtype)
            bias = tl.dot(r1, hot1, bias, input_precision=PRECISION)
        s += bias * 1.4426950408889634
    return s


@triton.jit
def _step(
    acc0,
    acc1,
    top,
    total,
    lost,
    q0,
    q1,
    r0,
    r1,
    k_base,
    v_base,
    start,
    num_k,
    k_stride,
    v_stride,
    scale,
    grid,
    N: tl.constexpr,
    MASKED: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    S0: tl.constexpr,
    S1: tl.constexpr,
    CLS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    keys = start + tl.arange(0, N)
    k0 = load_rows(k_base, keys, k_stride, num_k, 0, D0, D, MASKED)
    v0 = load_rows(v_base, keys, v_stride, num_k, 0, D0, D, MASKED)
    k1, v1 = k0, v0
    if D1 > 0:
        k1 = load_rows(k_base, keys, k_stride, num_k, D0, D1, D, MASKED)
        v1 = load_rows(v_base, keys, v_stride, num_k, D0, D1, D, MASKED)
    s = biased_scores(q0, q1, k0, k1, r0, r1, keys, scale, grid, D1, S0, S1, CLS, PRECISION)
    if MASKED:
        s = tl.where((keys < num_k)[None, :], s, float("-inf"))
    new_top = tl.maximum(top, tl.max(s, 1))
    # A row that has seen nothing but -inf so far: any finite number serves as its maximum.
    at = tl.where(new_top == float("-inf"), 0.0, new_top)
    p = tl.exp2(s - at[:, None])
    rescale = tl.exp2(top - at)
    if q0.dtype == tl.float32:
        # What rounding took from the sum so far (Kahan): the log-sum-exp goes into every gradient.
        add = tl.sum(p, 1) - lost * rescale
        scaled = total * rescale
        total = scaled + add
        lost = (total - scaled) - add
    else:
        total = total * rescale + tl.sum(p, 1)
    p = p.to(v0.dtype)
    acc0 = tl.dot(p, v0, acc0 * rescale[:, None], input_precision=PRECISION)
    if D1 > 0:
        acc1 = tl.dot(p, v1, acc1 * rescale[:, None], input_precision=PRECISION)
    return acc0, acc1, new_top, total, lost


@kernel
def attention_forward(
    q_ptr,
    k_ptr,
    v_ptr,
    rows_ptr,
    out_ptr,
    lse_ptr,
    q_stride_b,
    q_stride_h,
    q_stride_n,
    k_stride_b,
    k_stride_h,
    k_stride_n,
    v_stride_b,
    v_stride_h,
    v_stride_n,
    rows_stride_b,
    rows_stride_h,
    rows_stride_n,
    heads,
    num_q,
    num_k,
    scale,
    entries,
    k_t,
    k_h,
    k_w,
    magic_hw,
    shift_hw,
    magic_w,
    shift_w,
    UNIT: tl.constexpr,
    ROWS_UNIT: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    S0: tl.constexpr,
    S1: tl.constexpr,
    CLS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TAIL: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = tl.cdiv(num_q, BLOCK_M)
    tile = tl.program_id(0) % tiles
    bh = tl.program_id(0) // tiles
    b = (bh // heads).to(tl.int64)
    h = (bh % heads).to(tl.int64)
    q_base = q_ptr + (b * q_stride_b + h * q_stride_h) * UNIT
    k_base = k_ptr + (b * k_stride_b + h * k_stride_h) * UNIT
    v_base = v_ptr + (b * v_stride_b + h * v_stride_h) * UNIT

    grid = (k_t, k_h, k_w, magic_hw, shift_hw, magic_w, shift_w)
    queries = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    q0 = load_rows(q_base, queries, q_stride_n * UNIT, num_q, 0, D0, D, True)
    q1 = q0
    if D1 > 0:
        q1 = load_rows(q_base, queries, q_stride_n * UNIT, num_q, D0, D1, D, True)
    r0, r1 = q0, q0
    if S0 > 0:
        rows_base = rows_ptr + (b * rows_stride_b + h * rows_stride_h) * ROWS_UNIT
        rows_stride = rows_stride_n * ROWS_UNIT
        r0 = load_rel_pos(rows_base, queries, rows_stride, num_q, entries, 0, S0, CLS, q0.dtype)
        r1 = r0
        if S1 > 0:
            r1 = load_rel_pos(rows_base, queries, rows_stride, num_q, entries, S0, S1, CLS, q0.dtype)
        if not CLS:
            # Eager's softmax of nothing but -inf is NaN. The backward learns it from the log-sum-exp.
            none = excludes_every_key(rows_base, queries, rows_stride, num_q, grid, S0, S1)
            r0 = tl.where(none[:, None], float("nan"), r0.to(tl.float32)).to(q0.dtype)

    log2e_scale = scale * 1.4426950408889634
    acc0 = tl.zeros([BLOCK_M, D0], tl.float32)
    acc1 = tl.zeros([BLOCK_M, D1 if D1 > 0 else 1], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    lost = tl.zeros([BLOCK_M], tl.float32)
    # A tail as wide as the tiles, in float32 and where tiles are narrow: one masked loop. A step of its own would have
    # the compiler run out of registers.
    FLOAT32: tl.constexpr = q_ptr.dtype.element_ty == tl.float32
    MERGED: tl.constexpr = TAIL == BLOCK_N and (FLOAT32 or BLOCK_N == 16)
    whole = num_k if MERGED else num_k // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        acc0, acc1, top, total, lost = _step(
            acc0, acc1, top, total, lost, q0, q1, r0, r1, k_base, v_base, start, num_k, k_stride_n * UNIT,
            v_stride_n * UNIT, log2e_scale, grid, BLOCK_N, MERGED, D, D0, D1, S0, S1, CLS, PRECISION,
        )  # fmt: skip
    if TAIL == BLOCK_N:
        if not MERGED:
            acc0, acc1, top, total, lost = _step(
                acc0, acc1, top, total, lost, q0, q1, r0, r1, k_base, v_base, whole, num_k, k_stride_n * UNIT,
                v_stride_n * UNIT, log2e_scale, grid, BLOCK_N, True, D, D0, D1, S0, S1, CLS, PRECISION,
            )  # fmt: skip
    else:
        for bit in tl.static_range(0, 3):
            if TAIL & (64 >> bit):
                acc0, acc1, top, total, lost = _step(
                    acc0, acc1, top, total, lost, q0, q1, r0, r1, k_base, v_base,
                    whole + (TAIL & ~((128 >> bit) - 1)), num_k, k_stride_n * UNIT, v_stride_n * UNIT,
                    log2e_scale, grid, 64 >> bit, True, D, D0, D1, S0, S1, CLS, PRECISION,
                )  # fmt: skip

    safe = tl.where(total == 0.0, 1.0, total)
    inverse = tl.where(total == 0.0, float("nan"), 1.0 / safe)
    acc0 *= inverse[:, None]
    acc1 *= inverse[:, None]
    if RESIDUAL:
        # RESIDUAL: 1 adds q everywhere, 2 leaves the cls row out.
        added = (queries >= (CLS if RESIDUAL == 2 else 0))[:, None]
        acc0 += tl.where(added, q0.to(tl.float32), 0.0)
        if D1 > 0:
            acc1 += tl.where(added, q1.to(tl.float32), 0.0)
    out_base = out_ptr + (b * num_q * heads + h) * D
    store_rows(out_base, acc0, queries, heads * D, num_q, 0, D0, D)
    if D1 > 0:
        store_rows(out_base, acc1, queries, heads * D, num_q, D0, D1, D)
    lse = (top + tl.log2(total)) * 0.6931471805599453
    tl.store(lse_ptr + bh.to(tl.int64) * num_q + queries, lse, mask=queries < num_q)
