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

from .primitives import coordinates, kernel

CONV, AVG, MAX = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def window(o, extents):
    """First input coordinates (t, h, w) of the windows of outputs `o`."""
    in_t, in_h, in_w, out_h, out_w, k_t, k_h, s_t, s_h, s_w, p_t, p_h, p_w = extents
    t, h, w = coordinates(o, out_h, out_w)
    return t * s_t - p_t, h * s_h - p_h, w * s_w - p_w


@triton.jit
def pooled_part(
    base, stride, weight_ptr, channels, first_channel, o, valid, extents,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, CLS: tl.constexpr,
    GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Channels FIRST to FIRST + WIDTH of the pooled outputs `o` (ROWS,), float32; and for MAX the tap that won.

    The convolution's weights lie as (taps, channels), float32. A maximum takes the first of equals and any NaN, as
    PyTorch's does.
    """
    MODE: tl.constexpr = GEOMETRY[0]
    KW: tl.constexpr = GEOMETRY[3]
    d = FIRST + tl.arange(0, WIDTH)
    acc = tl.full([ROWS, WIDTH], float("-inf") if MODE == MAX else 0.0, tl.float32)
    best = tl.full([ROWS, WIDTH], -1, tl.int32)
    in_t, in_h, in_w, out_h, out_w, k_t, k_h, s_t, s_h, s_w, p_t, p_h, p_w = extents
    t0, h0, w0 = window(o, extents)
    # A tap lies the same way from the first one in every window: one pointer per window, and a number per tap.
    first = base + (CLS + (t0 * in_h + h0) * in_w + w0).to(tl.int64)[:, None] * stride + d[None, :]
    # The extents are numbers, so that lines stay a loop: with all taps at once the registers run out.
    for kt in range(k_t):
        for kh in range(k_h):
            line = valid & (t0 + kt >= 0) & (t0 + kt < in_t) & (h0 + kh >= 0) & (h0 + kh < in_h)
            line_at = first + ((kt * in_h + kh) * in_w).to(tl.int64) * stride
            for kw in tl.static_range(KW):
                keep = (line & (w0 + kw >= 0) & (w0 + kw < in_w))[:, None]
                if FIRST + WIDTH > D:
                    keep = keep & (d < D)[None, :]
                at = line_at + kw * stride
                tap = (kt * k_h + kh) * KW + kw
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
        acc *= 1.0 / (k_t * k_h * KW)
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
    base, stride, weight_ptr, channels, first_channel, rows, num_out, extents,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ROWS: tl.constexpr, CLS: tl.constexpr, GEOMETRY: tl.constexpr,
):  # fmt: skip
    """Output tokens `rows` before the norm, cls token included, as the two parts of the head dim."""
    o = rows - CLS
    valid = (o >= 0) & (rows < num_out)
    y0, _ = pooled_part(
        base, stride, weight_ptr, channels, first_channel, o, valid, extents,
        0, D0, D, ROWS, CLS, GEOMETRY,
    )  # fmt: skip
    y1 = y0
    if D1 > 0:
        y1, _ = pooled_part(
            base, stride, weight_ptr, channels, first_channel, o, valid, extents,
            D0, D1, D, ROWS, CLS, GEOMETRY,
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
    extents, GEOMETRY: tl.constexpr, UNIT: tl.constexpr, CLS: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    NORM: tl.constexpr = GEOMETRY[1]
    b = (bh // heads).to(tl.int64)
    h = bh % heads
    base = x_ptr + (b * stride_b + h.to(tl.int64) * stride_h) * UNIT
    rows = tile * ROWS + tl.arange(0, ROWS)
    channels = heads * D if GEOMETRY[2] else D
    first_channel = h * D if GEOMETRY[2] else 0
    y0, y1 = pooled_row(
        base, stride_n * UNIT, weight_ptr, channels, first_channel, rows, num_out, extents,
        D, D0, D1, ROWS, CLS, GEOMETRY,
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


@kernel
def pool_forward(
    a_x_ptr, a_out_ptr, a_weight_ptr, a_norm_weight_ptr, a_norm_bias_ptr, a_eps, a_stride_b, a_stride_h, a_stride_n,
    a_num_out, a_in_t, a_in_h, a_in_w, a_out_h, a_out_w, a_k_t, a_k_h,
    a_s_t, a_s_h, a_s_w, a_p_t, a_p_h, a_p_w,
    b_x_ptr, b_out_ptr, b_weight_ptr, b_norm_weight_ptr, b_norm_bias_ptr, b_eps, b_stride_b, b_stride_h, b_stride_n,
    b_num_out, b_in_t, b_in_h, b_in_w, b_out_h, b_out_w, b_k_t, b_k_h,
    b_s_t, b_s_h, b_s_w, b_p_t, b_p_h, b_p_w,
    c_x_ptr, c_out_ptr, c_weight_ptr, c_norm_weight_ptr, c_norm_bias_ptr, c_eps, c_stride_b, c_stride_h, c_stride_n,
    c_num_out, c_in_t, c_in_h, c_in_w, c_out_h, c_out_w, c_k_t, c_k_h,
    c_s_t, c_s_h, c_s_w, c_p_t, c_p_h, c_p_w,
    heads, GEOMETRY_A: tl.constexpr, GEOMETRY_B: tl.constexpr, GEOMETRY_C: tl.constexpr, UNIT: tl.constexpr,
    CLS: tl.constexpr, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """GEOMETRY: mode, norm bits (norm, weight, bias), own weights per head, kernel width.

    Empty for a branch that is not there. Program ids: the tiles of branch a, of b, of c, for every (batch, head).
    """
    a_extents = (
        a_in_t, a_in_h, a_in_w, a_out_h, a_out_w, a_k_t, a_k_h, a_s_t, a_s_h,
        a_s_w, a_p_t, a_p_h, a_p_w,
    )  # fmt: skip
    b_extents = (
        b_in_t, b_in_h, b_in_w, b_out_h, b_out_w, b_k_t, b_k_h, b_s_t, b_s_h,
        b_s_w, b_p_t, b_p_h, b_p_w,
    )  # fmt: skip
    c_extents = (
        c_in_t, c_in_h, c_in_w, c_out_h, c_out_w, c_k_t, c_k_h, c_s_t, c_s_h,
        c_s_w, c_p_t, c_p_h, c_p_w,
    )  # fmt: skip
    tiles_a = tl.cdiv(a_num_out, ROWS)
    tiles = tiles_a
    if len(GEOMETRY_B) > 0:
        tiles += tl.cdiv(b_num_out, ROWS)
    tiles_ab = tiles
    if len(GEOMETRY_C) > 0:
        tiles += tl.cdiv(c_num_out, ROWS)
    tile = tl.program_id(0) % tiles
    bh = tl.program_id(0) // tiles
    if tile < tiles_a:
        _branch(
            tile, bh, heads, a_x_ptr, a_out_ptr, a_weight_ptr, a_norm_weight_ptr, a_norm_bias_ptr, a_eps, a_stride_b,
            a_stride_h, a_stride_n, a_num_out, a_extents, GEOMETRY_A, UNIT, CLS, D, D0, D1, ROWS,
        )  # fmt: skip
    if len(GEOMETRY_B) > 0:
        if (tile >= tiles_a) & (tile < tiles_ab):
            _branch(
                tile - tiles_a, bh, heads, b_x_ptr, b_out_ptr, b_weight_ptr, b_norm_weight_ptr, b_norm_bias_ptr, b_eps,
                b_stride_b, b_stride_h, b_stride_n, b_num_out, b_extents, GEOMETRY_B, UNIT, CLS, D, D0, D1, ROWS,
            )  # fmt: skip
    if len(GEOMETRY_C) > 0:
        if tile >= tiles_ab:
            _branch(
                tile - tiles_ab, bh, heads, c_x_ptr, c_out_ptr, c_weight_ptr, c_norm_weight_ptr, c_norm_bias_ptr,
                c_eps, c_stride_b, c_stride_h, c_stride_n, c_num_out, c_extents, GEOMETRY_C, UNIT, CLS, D, D0, D1, ROWS,
            )  # fmt: skip
