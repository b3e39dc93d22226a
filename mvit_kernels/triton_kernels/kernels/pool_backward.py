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

from .pool import AVG, CONV, MAX, load_channels, moments, pooled_part, pooled_row


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


@triton.jit
def pool_grad_outputs(
    x_ptr, g_ptr, weight_ptr, norm_weight, dy_ptr, sums_ptr, winners_ptr, eps, x_stride_b, x_stride_h, x_stride_n,
    g_stride_b, g_stride_h, g_stride_n, num_out, channels, heads, GEOMETRY: tl.constexpr, UNIT: tl.constexpr,
    CLS: tl.constexpr, SUMS: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ROWS: tl.constexpr,
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
    g_base = g_ptr + b * g_stride_b + h.to(tl.int64) * g_stride_h
    rows = tile * ROWS + tl.arange(0, ROWS)
    first_channel = h * D if GEOMETRY[2] else 0
    out = bh.to(tl.int64) * num_out * D
    if MODE == MAX:
        o = rows - CLS
        valid = (o >= 0) & (rows < num_out)
        _, best = pooled_part(
            base, x_stride_n * UNIT, weight_ptr, channels, first_channel, o, valid, 0, D0, D, ROWS, MODE, CLS,
            GEOMETRY[3], GEOMETRY[4], GEOMETRY[5], GEOMETRY[6], GEOMETRY[7], GEOMETRY[8], GEOMETRY[9], GEOMETRY[10],
            GEOMETRY[11], GEOMETRY[12], GEOMETRY[13], GEOMETRY[14], GEOMETRY[15], GEOMETRY[16],
        )  # fmt: skip
        _store(winners_ptr + out, best, rows, num_out, 0, D0, D)
        if D1 > 0:
            _, best1 = pooled_part(
                base, x_stride_n * UNIT, weight_ptr, channels, first_channel, o, valid, D0, D1, D, ROWS, MODE, CLS,
                GEOMETRY[3], GEOMETRY[4], GEOMETRY[5], GEOMETRY[6], GEOMETRY[7], GEOMETRY[8], GEOMETRY[9],
                GEOMETRY[10], GEOMETRY[11], GEOMETRY[12], GEOMETRY[13], GEOMETRY[14], GEOMETRY[15], GEOMETRY[16],
            )  # fmt: skip
            _store(winners_ptr + out, best1, rows, num_out, D0, D1, D)
    if NORM & 1:
        y0, y1 = pooled_row(
            base, x_stride_n * UNIT, weight_ptr, channels, first_channel, rows, num_out, D, D0, D1, ROWS, MODE, CLS,
            GEOMETRY[3], GEOMETRY[4], GEOMETRY[5], GEOMETRY[6], GEOMETRY[7], GEOMETRY[8], GEOMETRY[9], GEOMETRY[10],
            GEOMETRY[11], GEOMETRY[12], GEOMETRY[13], GEOMETRY[14], GEOMETRY[15], GEOMETRY[16],
        )  # fmt: skip
        y0, y1, inverse = moments(y0, y1, eps, D, D0, D1)
        y0 *= inverse[:, None]
        g0 = _load_grad(g_base, rows, g_stride_n, num_out, 0, D0, D)
        g1 = g0
        if D1 > 0:
            y1 *= inverse[:, None]
            g1 = _load_grad(g_base, rows, g_stride_n, num_out, D0, D1, D)
        if SUMS:
            sums = sums_ptr + tl.program_id(0).to(tl.int64) * 2 * D
            _store_sums(sums, g0, y0, 0, D0, D, ROWS)
            if D1 > 0:
                _store_sums(sums, g1, y1, D0, D1, D, ROWS)
        if NORM & 2:
            g0 *= load_channels(norm_weight, 0, D0, D)[None, :]
            if D1 > 0:
                g1 *= load_channels(norm_weight, D0, D1, D)[None, :]
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


@triton.jit
def pool_grad_inputs(
    dy_ptr, winners_ptr, weight_ptr, grad_ptr, dy_stride_b, dy_stride_h, dy_stride_n,
    grad_stride_b, grad_stride_h, grad_stride_n, num_in, num_out, channels, heads,
    GEOMETRY: tl.constexpr, TO: tl.constexpr, CLS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """The gradient of x, (B, H, N, D) in any strides."""
    MODE: tl.constexpr = GEOMETRY[0]
    H: tl.constexpr = GEOMETRY[4]
    W: tl.constexpr = GEOMETRY[5]
    HO: tl.constexpr = GEOMETRY[6]
    WO: tl.constexpr = GEOMETRY[7]
    KT: tl.constexpr = GEOMETRY[8]
    KH: tl.constexpr = GEOMETRY[9]
    KW: tl.constexpr = GEOMETRY[10]
    ST: tl.constexpr = GEOMETRY[11]
    SH: tl.constexpr = GEOMETRY[12]
    SW: tl.constexpr = GEOMETRY[13]
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
    first_channel = h * D if GEOMETRY[2] else 0
    dy_base = dy_ptr + b * dy_stride_b + h.to(tl.int64) * dy_stride_h
    n = rows - CLS
    valid = (n >= 0) & (rows < num_in)
    # The last output that can read a token, per axis, and the ones before it.
    pt = n // (H * W) + GEOMETRY[14]
    ph = (n // W) % H + GEOMETRY[15]
    pw = n % W + GEOMETRY[16]
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    for jt in range((KT + ST - 1) // ST):
        ot = pt // ST - jt
        kt = pt - ot * ST
        for jh in range((KH + SH - 1) // SH):
            oh = ph // SH - jh
            kh = ph - oh * SH
            line = valid & (ot >= 0) & (ot < TO) & (kt < KT) & (oh >= 0) & (oh < HO) & (kh < KH)
            for jw in tl.static_range((KW + SW - 1) // SW):
                ow = pw // SW - jw
                kw = pw - ow * SW
                inside = line & (ow >= 0) & (ow < WO) & (kw < KW)
                keep = inside[:, None] & in_d
                row = CLS + (ot * HO + oh) * WO + ow
                tap = (kt * KH + kh) * KW + kw
                dy = tl.load(dy_base + row.to(tl.int64)[:, None] * dy_stride_n + d[None, :], mask=keep, other=0.0)
                dy = dy.to(tl.float32)
                if MODE == CONV:
                    if ST == 1 and SH == 1 and SW == 1:
                        one_tap = (jt * KH + jh) * KW + jw
                        weight = tl.load(weight_ptr + one_tap * channels + first_channel + d, mask=d < D, other=0.0)
                        acc += dy * weight[None, :]
                    else:
                        at = weight_ptr + tap[:, None] * channels + first_channel + d[None, :]
                        acc += dy * tl.load(at, mask=keep, other=0.0)
                elif MODE == MAX:
                    at = winners_ptr + (bh.to(tl.int64) * num_out + row)[:, None] * D + d[None, :]
                    acc += tl.where(tl.load(at, mask=keep, other=-1) == tap[:, None], dy, 0.0)
                else:
                    acc += dy
    if MODE == AVG:
        acc *= 1.0 / (KT * KH * KW)
    if CLS:
        cls = tl.load(dy_base + d, mask=d < D, other=0.0).to(tl.float32)
        acc = tl.where((rows == 0)[:, None], cls[None, :], acc)
    out = grad_ptr + b * grad_stride_b + h.to(tl.int64) * grad_stride_h
    out = out + rows.to(tl.int64)[:, None] * grad_stride_n + d[None, :]
    tl.store(out, acc.to(grad_ptr.dtype.element_ty), mask=(rows < num_in)[:, None] & in_d)


@triton.jit
def pool_grad_weight(
    x_ptr, dy_ptr, sums_ptr, x_stride_b, x_stride_h, x_stride_n, dy_stride_b, dy_stride_h, dy_stride_n, grid_out,
    channels, batch, heads, part_outputs, GEOMETRY: tl.constexpr, UNIT: tl.constexpr, CLS: tl.constexpr,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Sums of dy * x per tap, (part, taps, channels) float32. Parts run over (batch, head) and blocks of outputs.

    Heads with weights of their own: a part is one of (batch, blocks), and the head chooses the channels.
    """
    H: tl.constexpr = GEOMETRY[4]
    W: tl.constexpr = GEOMETRY[5]
    HO: tl.constexpr = GEOMETRY[6]
    WO: tl.constexpr = GEOMETRY[7]
    KT: tl.constexpr = GEOMETRY[8]
    KH: tl.constexpr = GEOMETRY[9]
    KW: tl.constexpr = GEOMETRY[10]
    blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    parts = tl.cdiv(grid_out, part_outputs)
    kh = tl.program_id(0) % KH
    kt = tl.program_id(0) // KH % KT
    block = tl.program_id(0) // (KH * KT) % blocks
    part = tl.program_id(0) // (KH * KT * blocks) % parts
    bh = tl.program_id(0) // (KH * KT * blocks) // parts
    b = bh // heads
    h = bh % heads
    d = block * BLOCK_D + tl.arange(0, BLOCK_D)
    in_d = (d < D)[None, :]
    x_base = x_ptr + (b.to(tl.int64) * x_stride_b + h.to(tl.int64) * x_stride_h) * UNIT
    dy_base = dy_ptr + b.to(tl.int64) * dy_stride_b + h.to(tl.int64) * dy_stride_h
    first = part * part_outputs
    last = tl.minimum(first + part_outputs, grid_out)
    if GEOMETRY[2]:
        out = (b * parts + part).to(tl.int64) * KT * KH * KW * channels + h * D
    else:
        out = (bh * parts + part).to(tl.int64) * KT * KH * KW * channels
    for kw in tl.static_range(KW):
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for start in range(first, last, ROWS):
            o = start + tl.arange(0, ROWS)
            t = o // (HO * WO) * GEOMETRY[11] - GEOMETRY[14] + kt
            hh = (o // WO) % HO * GEOMETRY[12] - GEOMETRY[15] + kh
            w = o % WO * GEOMETRY[13] - GEOMETRY[16] + kw
            inside = (o < last) & (t >= 0) & (t < GEOMETRY[3]) & (hh >= 0) & (hh < H) & (w >= 0) & (w < W)
            keep = inside[:, None] & in_d
            n = CLS + (t * H + hh) * W + w
            x = tl.load(x_base + n.to(tl.int64)[:, None] * (x_stride_n * UNIT) + d[None, :], mask=keep, other=0.0)
            dy = tl.load(dy_base + (CLS + o).to(tl.int64)[:, None] * dy_stride_n + d[None, :], mask=keep, other=0.0)
            acc += x.to(tl.float32) * dy.to(tl.float32)
        tap = (kt * KH + kh) * KW + kw
        tl.store(sums_ptr + out + tap * channels + d, tl.sum(acc, 0), mask=d < D)
