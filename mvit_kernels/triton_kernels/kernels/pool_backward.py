"""Pooling and LayerNorm, backward: no atomics, three kernels.

    pool_grad_outputs   one program: ROWS output tokens. Pools again (with a norm, or for a maximum's winners); the
                        gradient dy before the norm; sums for the norm's weight and bias into a row of their own
    pool_grad_inputs    one program: ROWS input tokens and a block of channels. Each gathers from the outputs that
                        read it: ceil(kernel / stride) per axis
    pool_grad_weight    one program: the taps of one (kt, kh) line, a block of channels and a part of the outputs

Rows and parts are added up by the caller, in a fixed order.
"""

import triton
import triton.language as tl

from .pool import AVG, CONV, MAX, load_channels, moments, pooled_part, pooled_row, window
from .primitives import coordinates, kernel


@triton.jit
def _load_grad(g_base, rows, stride, num_out, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    d = FIRST + tl.arange(0, WIDTH)
    keep = (rows < num_out)[:, None] & (d < D)[None, :]
    return tl.load(g_base + rows.to(tl.int64)[:, None] * stride + d[None, :], mask=keep, other=0.0).to(tl.float32)


@triton.jit
def _store(base, values, rows, num_out, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    d = FIRST + tl.arange(0, WIDTH)
    keep = (rows < num_out)[:, None] & (d < D)[None, :]
    tl.store(base + rows.to(tl.int64)[:, None] * D + d[None, :], values.to(base.dtype.element_ty), mask=keep)


@triton.jit
def _sum_of_rows(x, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sum over the rows, in fours and then of those: fewer roundings in a chain than one after the other."""
    if ROWS > 4:
        x = tl.sum(tl.reshape(x, [ROWS // 4, 4, WIDTH]), 1)
    return tl.sum(x, 0)


@triton.jit
def _store_sums(base, g, y, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr):
    """Sums of g * y and of g over the rows, (2, D)."""
    d = FIRST + tl.arange(0, WIDTH)
    tl.store(base + d, _sum_of_rows(g * y, ROWS, WIDTH), mask=d < D)
    tl.store(base + D + d, _sum_of_rows(g, ROWS, WIDTH), mask=d < D)


@kernel
def pool_grad_outputs(
    x_ptr, g_ptr, weight_ptr, norm_weight_ptr, dy_ptr, sums_ptr, winners_ptr, eps, x_stride_b, x_stride_h, x_stride_n,
    g_stride_b, g_stride_h, g_stride_n, num_out, heads, in_t, in_h, in_w, out_h, out_w, k_t, k_h,
    s_t, s_h, s_w, p_t, p_h, p_w, GEOMETRY: tl.constexpr, UNIT: tl.constexpr, CLS: tl.constexpr, SUMS: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dy of a branch with a norm; its sums, (programs, 2, D); the winning taps of a maximum."""
    MODE: tl.constexpr = GEOMETRY[0]
    NORM: tl.constexpr = GEOMETRY[1]
    tiles = tl.cdiv(num_out, ROWS)
    tile = tl.program_id(0) % tiles
    bh = tl.program_id(0) // tiles
    b = (bh // heads).to(tl.int64)
    h = bh % heads
    base = x_ptr + (b * x_stride_b + h.to(tl.int64) * x_stride_h) * UNIT
    g_base = g_ptr + (b * g_stride_b + h.to(tl.int64) * g_stride_h) * UNIT
    rows = tile * ROWS + tl.arange(0, ROWS)
    channels = heads * D if GEOMETRY[2] else D
    first_channel = h * D if GEOMETRY[2] else 0
    extents = (in_t, in_h, in_w, out_h, out_w, k_t, k_h, s_t, s_h, s_w, p_t, p_h, p_w)
    out = bh.to(tl.int64) * num_out * D
    if MODE == MAX:
        o = rows - CLS
        valid = (o >= 0) & (rows < num_out)
        _, best = pooled_part(
            base, x_stride_n * UNIT, weight_ptr, channels, first_channel, o, valid, extents,
            0, D0, D, ROWS, CLS, GEOMETRY,
        )  # fmt: skip
        _store(winners_ptr + out, best, rows, num_out, 0, D0, D)
        if D1 > 0:
            _, best1 = pooled_part(
                base, x_stride_n * UNIT, weight_ptr, channels, first_channel, o, valid, extents,
                D0, D1, D, ROWS, CLS, GEOMETRY,
            )  # fmt: skip
            _store(winners_ptr + out, best1, rows, num_out, D0, D1, D)
    if NORM & 1:
        y0, y1 = pooled_row(
            base, x_stride_n * UNIT, weight_ptr, channels, first_channel, rows, num_out, extents,
            D, D0, D1, ROWS, CLS, GEOMETRY,
        )  # fmt: skip
        y0, y1, inverse = moments(y0, y1, eps, D, D0, D1)
        y0 *= inverse[:, None]
        g0 = _load_grad(g_base, rows, g_stride_n * UNIT, num_out, 0, D0, D)
        g1 = g0
        if D1 > 0:
            y1 *= inverse[:, None]
            g1 = _load_grad(g_base, rows, g_stride_n * UNIT, num_out, D0, D1, D)
        if SUMS:
            sums = sums_ptr + tl.program_id(0).to(tl.int64) * 2 * D
            _store_sums(sums, g0, y0, 0, D0, D, ROWS)
            if D1 > 0:
                _store_sums(sums, g1, y1, D0, D1, D, ROWS)
        if NORM & 2:
            g0 *= load_channels(norm_weight_ptr, 0, D0, D)[None, :]
            if D1 > 0:
                g1 *= load_channels(norm_weight_ptr, D0, D1, D)[None, :]
        mean = tl.sum(g0, 1)
        along = tl.sum(g0 * y0, 1)
        if D1 > 0:
            mean += tl.sum(g1, 1)
            along += tl.sum(g1 * y1, 1)
        mean = mean / D
        along = along / D
        _store(dy_ptr + out, (g0 - mean[:, None] - y0 * along[:, None]) * inverse[:, None], rows, num_out, 0, D0, D)
        if D1 > 0:
            dy1 = (g1 - mean[:, None] - y1 * along[:, None]) * inverse[:, None]
            _store(dy_ptr + out, dy1, rows, num_out, D0, D1, D)


@kernel
def pool_grad_inputs(
    dy_ptr, winners_ptr, weight_ptr, grad_ptr, dy_stride_b, dy_stride_h, dy_stride_n,
    grad_stride_b, grad_stride_h, grad_stride_n, num_in, num_out, heads, in_h, in_w, out_t, out_h, out_w,
    k_t, k_h, p_t, p_h, p_w,
    GEOMETRY: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, UNIT: tl.constexpr,
    CLS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """The gradient of x, (B, H, N, D) in any strides."""
    MODE: tl.constexpr = GEOMETRY[0]
    KW: tl.constexpr = GEOMETRY[3]
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    tiles = tl.cdiv(num_in, ROWS)
    block = tl.program_id(0) % blocks
    tile = tl.program_id(0) // blocks % tiles
    bh = tl.program_id(0) // blocks // tiles
    b = (bh // heads).to(tl.int64)
    h = bh % heads
    rows = tile * ROWS + tl.arange(0, ROWS)
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = (d < D)[None, :]
    channels = heads * D if GEOMETRY[2] else D
    first_channel = h * D if GEOMETRY[2] else 0
    dy_base = dy_ptr + (b * dy_stride_b + h.to(tl.int64) * dy_stride_h) * UNIT
    dy_stride = dy_stride_n * UNIT
    n = rows - CLS
    valid = (n >= 0) & (rows < num_in)
    # The last output that can read a token, per axis, and the ones before it: all at the same distances from it.
    pt, ph, pw = coordinates(n, in_h, in_w)
    pt += p_t
    ph += p_h
    pw += p_w
    last = ((pt // ST * out_h + ph // SH) * out_w + pw // SW + CLS).to(tl.int64)
    dy_last = dy_base + last[:, None] * dy_stride + d[None, :]
    winners_last = winners_ptr + (bh.to(tl.int64) * num_out + last)[:, None] * D + d[None, :]
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for jt in range((k_t + ST - 1) // ST):
        ot = pt // ST - jt
        kt = pt - ot * ST
        for jh in range((k_h + SH - 1) // SH):
            oh = ph // SH - jh
            kh = ph - oh * SH
            line = valid & (ot >= 0) & (ot < out_t) & (kt < k_t) & (oh >= 0) & (oh < out_h) & (kh < k_h)
            before = ((jt * out_h + jh) * out_w).to(tl.int64)
            for jw in tl.static_range((KW + SW - 1) // SW):
                ow = pw // SW - jw
                kw = pw - ow * SW
                keep = (line & (ow >= 0) & (ow < out_w) & (kw < KW))[:, None] & in_d
                dy = tl.load(dy_last - (before + jw) * dy_stride, mask=keep, other=0.0).to(tl.float32)
                tap = (kt * k_h + kh) * KW + kw
                if MODE == CONV:
                    if ST == 1 and SH == 1 and SW == 1:
                        one_tap = (jt * k_h + jh) * KW + jw
                        weight = tl.load(weight_ptr + one_tap * channels + first_channel + d, mask=d < D, other=0.0)
                        acc += dy * weight[None, :]
                    else:
                        at = weight_ptr + tap[:, None] * channels + first_channel + d[None, :]
                        acc += dy * tl.load(at, mask=keep, other=0.0)
                elif MODE == MAX:
                    winner = tl.load(winners_last - (before + jw) * D, mask=keep, other=-1)
                    acc += tl.where(winner == tap[:, None], dy, 0.0)
                else:
                    acc += dy
    if MODE == AVG:
        acc *= 1.0 / (k_t * k_h * KW)
    if CLS:
        cls = tl.load(dy_base + d, mask=d < D, other=0.0).to(tl.float32)
        acc = tl.where((rows == 0)[:, None], cls[None, :], acc)
    out = grad_ptr + (b * grad_stride_b + h.to(tl.int64) * grad_stride_h) * UNIT
    out = out + rows.to(tl.int64)[:, None] * (grad_stride_n * UNIT) + d[None, :]
    tl.store(out, acc.to(grad_ptr.dtype.element_ty), mask=(rows < num_in)[:, None] & in_d)


@kernel
def pool_grad_weight(
    x_ptr, dy_ptr, sums_ptr, x_stride_b, x_stride_h, x_stride_n, dy_stride_b, dy_stride_h, dy_stride_n, grid_out,
    heads, part_outputs, in_t, in_h, in_w, out_h, out_w, k_t, k_h,
    s_t, s_h, s_w, p_t, p_h, p_w, GEOMETRY: tl.constexpr, UNIT: tl.constexpr, CLS: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr,    ROWS: tl.constexpr,
):  # fmt: skip
    """Sums of dy * x per tap, (part, taps, channels) float32. Parts run over (batch, head) and blocks of outputs.

    Heads with weights of their own: a part is one of (batch, blocks), and the head chooses the channels.
    """
    KW: tl.constexpr = GEOMETRY[3]
    extents = (in_t, in_h, in_w, out_h, out_w, k_t, k_h, s_t, s_h, s_w, p_t, p_h, p_w)
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    parts = tl.cdiv(grid_out, part_outputs)
    kh = tl.program_id(0) % k_h
    kt = tl.program_id(0) // k_h % k_t
    block = tl.program_id(0) // (k_h * k_t) % blocks
    part = tl.program_id(0) // (k_h * k_t * blocks) % parts
    bh = tl.program_id(0) // (k_h * k_t * blocks) // parts
    b = bh // heads
    h = bh % heads
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = (d < D)[None, :]
    x_base = x_ptr + (b.to(tl.int64) * x_stride_b + h.to(tl.int64) * x_stride_h) * UNIT
    dy_base = dy_ptr + (b.to(tl.int64) * dy_stride_b + h.to(tl.int64) * dy_stride_h) * UNIT
    dy_stride = dy_stride_n * UNIT
    first = part * part_outputs
    last = tl.minimum(first + part_outputs, grid_out)
    channels = heads * D if GEOMETRY[2] else D
    if GEOMETRY[2]:
        out = (b * parts + part).to(tl.int64) * k_t * k_h * KW * channels + h * D
    else:
        out = (bh * parts + part).to(tl.int64) * k_t * k_h * KW * channels
    for kw in tl.static_range(KW):
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for start in range(first, last, ROWS):
            o = start + tl.arange(0, ROWS)
            t0, h0, w0 = window(o, extents)
            t = t0 + kt
            hh = h0 + kh
            w = w0 + kw
            inside = (o < last) & (t >= 0) & (t < in_t) & (hh >= 0) & (hh < in_h) & (w >= 0) & (w < in_w)
            keep = inside[:, None] & in_d
            n = CLS + (t * in_h + hh) * in_w + w
            x = tl.load(x_base + n.to(tl.int64)[:, None] * (x_stride_n * UNIT) + d[None, :], mask=keep, other=0.0)
            dy = tl.load(dy_base + (CLS + o).to(tl.int64)[:, None] * dy_stride + d[None, :], mask=keep, other=0.0)
            acc += x.to(tl.float32) * dy.to(tl.float32)
        tap = (kt * k_h + kh) * KW + kw
        tl.store(sums_ptr + out + tap * channels + d, tl.sum(acc, 0), mask=d < D)
