// The gradient of a pooling's input tokens from that of its outputs, one line of tokens at a time.
#pragma once

#include "cpu/pool_backward_plan.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

// The outputs that read coordinate i of an axis: output q - m by tap rest + m * stride, m in [first, last).
struct Readers {
    int64_t q, rest, first, last;
};
static Readers readers_of(int64_t i, int64_t outputs, int64_t kernel, int64_t stride, int64_t padding) {
    const int64_t q = (i + padding) / stride, rest = (i + padding) % stride;
    const int64_t taps = rest < kernel ? ceil_div(kernel - rest, stride) : 0;
    const int64_t first = max(0, q - outputs + 1);
    return {q, rest, first, max(first, min(taps, q + 1))};
}

// row = sum of dy over the outputs that this token won.
template <class T>
static void gather_maximum(const PoolBackwardPlan<T> &p, const PoolBackwardBranch<T> &b, const T *dy, const T *winners,
                           Readers t, Readers h, Readers w, T *row) {
    const Size3 out = b.pool.out_grid, kernel = b.pool.kernel, stride = b.pool.stride;
    for (int64_t c = 0; c < p.padded_dim; c += lanes<T>) {
        vec<T> sum = {};
        for (int64_t mt = t.first; mt < t.last; ++mt)
            for (int64_t mh = h.first; mh < h.last; ++mh)
                for (int64_t mw = w.first; mw < w.last; ++mw) {
                    const int64_t tap = ((t.rest + mt * stride.t) * kernel.h + h.rest + mh * stride.h) * kernel.w +
                                        w.rest + mw * stride.w;
                    const int64_t at = (((t.q - mt) * out.h + h.q - mh) * out.w + w.q - mw) * p.padded_dim + c;
                    const ivec<T> won = bits_as<ivec<T>>(load(winners + at)) == ivec<T>{} + Integer<T>(tap);
                    sum += won ? load(dy + at) : vec<T>{};
                }
        store(row + c, sum);
    }
}

template <class S>
static void run_x_unit(const PoolBackwardPlan<accumulator<S>> &p, const PoolBackwardBranch<accumulator<S>> &b,
                       int64_t unit, accumulator<S> *rows) {
    using T = accumulator<S>;
    const PoolBranch &pool = b.pool;
    const Size3 out = pool.out_grid, stride = pool.stride, kernel = pool.kernel;
    const int64_t D = p.padded_dim, per_tap = b.parameters.weight_per_tap;
    const int64_t it = unit % pool.in.t, ih = unit / pool.in.t % pool.in.h, bh = unit / pool.in.t / pool.in.h;
    const T *const dy = b.dy + (bh * out_tokens(p, b) + p.has_cls) * D;
    S *const to = static_cast<S *>(b.gradients.x) + bh / p.heads * b.gradients.x_stride_b +
                  bh % p.heads * b.gradients.x_stride_h +
                  (p.has_cls + (it * pool.in.h + ih) * pool.in.w) * b.gradients.x_stride_n;
    const Readers t = readers_of(it, out.t, kernel.t, stride.t, pool.padding.t);
    const Readers h = readers_of(ih, out.h, kernel.h, stride.h, pool.padding.h);
    // Tokens a stride apart have the same rest, and away from the borders the same taps.
    for (int64_t start = 0; start < min(stride.w, pool.in.w); ++start)
        for (int64_t i = start, count; i < pool.in.w; i += count * stride.w) {
            const Readers w = readers_of(i, out.w, kernel.w, stride.w, pool.padding.w);
            if (pool.mode == PoolMode::max) {
                count = 1;
                gather_maximum(p, b, dy, b.winners + (dy - b.dy), t, h, w, rows);
            } else {
                const int64_t taps = w.rest < kernel.w ? ceil_div(kernel.w - w.rest, stride.w) : 0;
                const bool whole = w.last - w.first == taps;
                const int64_t left = min(out.w - w.q, ceil_div(pool.in.w - i, stride.w));
                count = whole ? block_of(left) : 1;
                const int64_t output = ((t.q - t.first) * out.h + h.q - h.first) * out.w + w.q - w.first;
                const int64_t tap =
                    ((t.rest + t.first * stride.t) * kernel.h + h.rest + h.first * stride.h) * kernel.w + w.rest +
                    w.first * stride.w;
                convolve<T>(
                    {dy + output * D,
                     {-out.h * out.w * D, -out.w * D, -D},
                     D,
                     b.parameters.weight + bh % p.heads * b.parameters.weight_per_head + tap * per_tap,
                     {stride.t * kernel.h * kernel.w * per_tap, stride.h * kernel.w * per_tap, stride.w * per_tap},
                     {t.last - t.first, h.last - h.first, w.last - w.first}},
                    count, rows, D, D);
            }
            for (int64_t r = 0; r < count; ++r)
                for (int64_t c = 0; c < p.head_dim; c += lanes<T>)
                    store_first(to + (i + r * stride.w) * b.gradients.x_stride_n + c, load(rows + r * D + c),
                                p.head_dim - c);
        }
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
