"""Pooling and LayerNorm, forward: the one to three branches of a layer in one launch.

One program: ROWS output tokens of one branch and one (batch, head), all channels, as two parts (96 = 64 + 32).

    global -> registers   per tap the ROWS input tokens it meets; neighbouring outputs share them in L1
    registers             float32 sum, mean or maximum; LayerNorm over the head dim
    store                 contiguous (B, H, N', D)

Work per output value: 2 * taps FLOP. Traffic: every touched input token once, halo lines of a tile again from L2; the
output once. The cls token skips the pooling and is normalised.
"""

import triton
import triton.language as tl

CONV, AVG, MAX = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def window(o, HO: tl.constexpr, WO: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
           PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr):  # fmt: skip
    """First input coordinates (t, h, w) of the windows of outputs `o`."""
    return o // (HO * WO) * ST - PT, (o // WO) % HO * SH - PH, o % WO * SW - PW


@triton.jit
def pooled_part(
    base, stride, weight_ptr, channels, first_channel, o, valid,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, MODE: tl.constexpr,
    CLS: tl.constexpr, T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
):  # fmt: skip
    """Channels FIRST to FIRST + WIDTH of the pooled outputs `o` (ROWS,), float32; and for MAX the tap that won.

    The convolution's weights lie as (taps, channels), float32. A maximum takes the first of equals and any NaN, as
    PyTorch's does.
    """
    d = FIRST + tl.arange(0, WIDTH)
    acc = tl.full([ROWS, WIDTH], float("-inf") if MODE == MAX else 0.0, tl.float32)
    best = tl.full([ROWS, WIDTH], -1, tl.int32)
    t0, h0, w0 = window(o, HO, WO, ST, SH, SW, PT, PH, PW)
    for kt in range(KT):
        for kh in range(KH):
            t = t0 + kt
            h = h0 + kh
            line = valid & (t >= 0) & (t < T) & (h >= 0) & (h < H)
            line_at = CLS + (t * H + h) * W
            for kw in tl.static_range(KW):
                w = w0 + kw
                inside = line & (w >= 0) & (w < W)
                at = base + (line_at + w).to(tl.int64)[:, None] * stride + d[None, :]
                keep = inside[:, None]
                if FIRST + WIDTH > D:
                    keep = keep & (d < D)[None, :]
                tap = (kt * KH + kh) * KW + kw
                if MODE == MAX:
                    x = tl.load(at, mask=keep, other=float("-inf")).to(tl.float32)
                    better = keep & ((x > acc) | (x != x) | (best < 0))
                    acc = tl.where(better, x, acc)
                    best = tl.where(better, tap, best)
                else:
                    x = tl.load(at, mask=keep, other=0.0).to(tl.float32)
                    if MODE == CONV:
                        weight_at = weight_ptr + tap * channels + first_channel + d
                        if FIRST + WIDTH > D:
                            acc += x * tl.load(weight_at, mask=d < D, other=0.0)[None, :]
                        else:
                            acc += x * tl.load(weight_at)[None, :]
                    else:
                        acc += x
    if MODE == AVG:
        acc *= 1.0 / (KT * KH * KW)
    if MODE == MAX:
        # Rows and channels that do not exist: nothing that a sum over either could meet.
        acc = tl.where(valid[:, None] & (d < D)[None, :], acc, 0.0)
    return acc, best


@triton.jit
def with_cls(acc, base, is_cls, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """`acc` with the input's token 0 in the row of the cls token."""
    d = FIRST + tl.arange(0, WIDTH)
    x = tl.load(base + d, mask=d < D, other=0.0).to(tl.float32)
    return tl.where(is_cls[:, None], x[None, :], acc)


@triton.jit
def pooled_row(
    base, stride, weight_ptr, channels, first_channel, rows, num_out,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ROWS: tl.constexpr, MODE: tl.constexpr,
    CLS: tl.constexpr, T: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HO: tl.constexpr, WO: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, ST: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
):  # fmt: skip
    """Output tokens `rows` before the norm, cls token included, as the two parts of the head dim."""
    o = rows - CLS
    valid = (o >= 0) & (rows < num_out)
    y0, _ = pooled_part(
        base, stride, weight_ptr, channels, first_channel, o, valid, 0, D0, D, ROWS, MODE, CLS, T, H, W, HO, WO,
        KT, KH, KW, ST, SH, SW, PT, PH, PW,
    )  # fmt: skip
    y1 = y0
    if D1 > 0:
        y1, _ = pooled_part(
            base, stride, weight_ptr, channels, first_channel, o, valid, D0, D1, D, ROWS, MODE, CLS, T, H, W, HO, WO,
            KT, KH, KW, ST, SH, SW, PT, PH, PW,
        )  # fmt: skip
    if CLS:
        y0 = with_cls(y0, base, rows == 0, 0, D0, D)
        if D1 > 0:
            y1 = with_cls(y1, base, rows == 0, D0, D1, D)
    return y0, y1


@triton.jit
def moments(y0, y1, eps, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """Rows centred on their mean, zero outside the head dim, and 1 / standard deviation."""
    mean = tl.sum(y0, 1)
    if D1 > 0:
        mean += tl.sum(y1, 1)
    mean = mean / D
    y0 = tl.where((tl.arange(0, D0) < D)[None, :], y0 - mean[:, None], 0.0)
    square = tl.sum(y0 * y0, 1)
    if D1 > 0:
        y1 = tl.where((D0 + tl.arange(0, D1) < D)[None, :], y1 - mean[:, None], 0.0)
        square += tl.sum(y1 * y1, 1)
    return y0, y1, 1.0 / tl.sqrt_rn(square / D + eps)


@triton.jit
def load_channels(ptr, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    d = FIRST + tl.arange(0, WIDTH)
    return tl.load(ptr + d, mask=d < D, other=0.0).to(tl.float32)


@triton.jit
def _store(out, y, rows, num_out, norm_weight, norm_bias, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
           WEIGHT: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    if WEIGHT:
        y *= load_channels(norm_weight, FIRST, WIDTH, D)[None, :]
    if BIAS:
        y += load_channels(norm_bias, FIRST, WIDTH, D)[None, :]
    d = FIRST + tl.arange(0, WIDTH)
    keep = (rows < num_out)[:, None] & (d < D)[None, :]
    tl.store(out + rows.to(tl.int64)[:, None] * D + d[None, :], y.to(out.dtype.element_ty), mask=keep)


@triton.jit
def _branch(
    tile, bh, heads, x_ptr, out_ptr, weight_ptr, norm_weight, norm_bias, eps, stride_b, stride_h, stride_n, num_out,
    channels, GEOMETRY: tl.constexpr, UNIT: tl.constexpr, CLS: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    MODE: tl.constexpr = GEOMETRY[0]
    NORM: tl.constexpr = GEOMETRY[1]
    b = (bh // heads).to(tl.int64)
    h = bh % heads
    base = x_ptr + (b * stride_b + h.to(tl.int64) * stride_h) * UNIT
    rows = tile * ROWS + tl.arange(0, ROWS)
    first_channel = h * D if GEOMETRY[2] else 0
    y0, y1 = pooled_row(
        base, stride_n * UNIT, weight_ptr, channels, first_channel, rows, num_out, D, D0, D1, ROWS, MODE, CLS,
        GEOMETRY[3], GEOMETRY[4], GEOMETRY[5], GEOMETRY[6], GEOMETRY[7], GEOMETRY[8], GEOMETRY[9], GEOMETRY[10],
        GEOMETRY[11], GEOMETRY[12], GEOMETRY[13], GEOMETRY[14], GEOMETRY[15], GEOMETRY[16],
    )  # fmt: skip
    if NORM & 1:
        y0, y1, inverse = moments(y0, y1, eps, D, D0, D1)
        y0 *= inverse[:, None]
        if D1 > 0:
            y1 *= inverse[:, None]
    out = out_ptr + bh.to(tl.int64) * num_out * D
    _store(out, y0, rows, num_out, norm_weight, norm_bias, 0, D0, D, NORM & 2, NORM & 4)
    if D1 > 0:
        _store(out, y1, rows, num_out, norm_weight, norm_bias, D0, D1, D, NORM & 2, NORM & 4)


@triton.jit
def pool_forward(
    x_a, out_a, weight_a, norm_weight_a, norm_bias_a, eps_a, stride_b_a, stride_h_a, stride_n_a, num_out_a, channels_a,
    x_b, out_b, weight_b, norm_weight_b, norm_bias_b, eps_b, stride_b_b, stride_h_b, stride_n_b, num_out_b, channels_b,
    x_c, out_c, weight_c, norm_weight_c, norm_bias_c, eps_c, stride_b_c, stride_h_c, stride_n_c, num_out_c, channels_c,
    heads, GEOMETRY_A: tl.constexpr, GEOMETRY_B: tl.constexpr, GEOMETRY_C: tl.constexpr, UNIT: tl.constexpr,
    CLS: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """GEOMETRY: mode, norm bits (norm, weight, bias), own weights per head, T, H, W, HO, WO, kernel, stride, padding.

    Empty for a branch that is not there. Program ids: the tiles of branch a, of b, of c, for every (batch, head).
    """
    tiles_a = tl.cdiv(num_out_a, ROWS)
    tiles = tiles_a
    if len(GEOMETRY_B) > 0:
        tiles += tl.cdiv(num_out_b, ROWS)
    tiles_ab = tiles
    if len(GEOMETRY_C) > 0:
        tiles += tl.cdiv(num_out_c, ROWS)
    tile = tl.program_id(0) % tiles
    bh = tl.program_id(0) // tiles
    if tile < tiles_a:
        _branch(
            tile, bh, heads, x_a, out_a, weight_a, norm_weight_a, norm_bias_a, eps_a, stride_b_a, stride_h_a,
            stride_n_a, num_out_a, channels_a, GEOMETRY_A, UNIT, CLS, D, D0, D1, ROWS,
        )  # fmt: skip
    if len(GEOMETRY_B) > 0:
        if (tile >= tiles_a) & (tile < tiles_ab):
            _branch(
                tile - tiles_a, bh, heads, x_b, out_b, weight_b, norm_weight_b, norm_bias_b, eps_b, stride_b_b,
                stride_h_b, stride_n_b, num_out_b, channels_b, GEOMETRY_B, UNIT, CLS, D, D0, D1, ROWS,
            )  # fmt: skip
    if len(GEOMETRY_C) > 0:
        if tile >= tiles_ab:
            _branch(
                tile - tiles_ab, bh, heads, x_c, out_c, weight_c, norm_weight_c, norm_bias_c, eps_c, stride_b_c,
                stride_h_c, stride_n_c, num_out_c, channels_c, GEOMETRY_C, UNIT, CLS, D, D0, D1, ROWS,
            )  # fmt: skip
