// Convolution of windows 3 wide, and 3 or 1 long along t at stride 1: MViT's. A block of kMarchOutputs outputs along w
// marches along t.
//
// A frame's inputs are read once for all the outputs in t and w that they belong to: the sums of the KT outputs along t
// that a frame takes part in are all in registers, and the oldest leave them with every frame. So a vector that is
// loaded, and widened, serves up to 9 multiply-adds. Registers hold KT * kMarchOutputs * V sums, 3 * KT * V weights and
// one operand; V is 3 where KT is 1.
#pragma once

#include "common/grid.h"
#include "cpu/simd.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMarchOutputs = 7; // MViT's grids are multiples of 7
#else
constexpr int kMarchOutputs = 4;
#endif
constexpr int64_t kMarchFrames = 16; // the most outputs along t of a march: their rows stay in the caches

struct March {
    const PoolBranch *pool;
    int64_t t_begin, t_end; // outputs along t
    Taps h;                 // taps inside
    int64_t h_next;         // end of the taps inside of the next line of outputs, counted from this one's first tap
    int64_t first;          // the token of frame 0 under the first tap of the first output; it may lie outside
    uint32_t present;       // bit i: the token i places to the right is inside, and an output needs it
};

static inline bool can_march(const PoolBranch &pool) {
    return pool.mode != PoolMode::max && pool.kernel.w == 3 && pool.stride.w <= 3 && pool.stride.t == 1 &&
           (pool.kernel.t == 3 || pool.kernel.t == 1);
}

// The march of the outputs ow to ow + count of line oh.
static inline March march_of(const PoolBranch &pool, int64_t t_begin, int64_t t_end, int64_t oh, int64_t ow,
                             int64_t count) {
    const int64_t h = oh * pool.stride.h - pool.padding.h, w = ow * pool.stride.w - pool.padding.w;
    March march = {&pool,
                   t_begin,
                   t_end,
                   taps_inside(oh, pool.in.h, pool.kernel.h, pool.stride.h, pool.padding.h),
                   min(pool.kernel.h + pool.stride.h, pool.in.h - h),
                   h * pool.in.w + w,
                   0};
    for (int64_t i = 0; i < (count - 1) * pool.stride.w + 3; ++i)
        march.present |= uint32_t(w + i >= 0 && w + i < pool.in.w) << i;
    return march;
}

// rows[t - t_begin][kMarchOutputs][padded_dim] at channels c on; `tail` < lanes of them if kTail.
template <class S, int KT, int kStride, int V, bool kTail>
static void march_block(const March &m, const S *x, const accumulator<S> *weight, int64_t weight_per_tap, int64_t c,
                        int tail, accumulator<S> *rows, int64_t padded_dim) {
    using T = accumulator<S>;
    constexpr int W = lanes<T>, R = kMarchOutputs;
    const PoolBranch &pool = *m.pool;
    const int64_t line = pool.in.w * pool.stride_n, frame = pool.in.h * line, step = pool.stride_n;
    x += m.first * pool.stride_n + c;
    weight += c;
    rows += c;
    vec<T> acc[KT][R][V];
#pragma GCC unroll 8
    for (int kt = 0; kt < KT; ++kt)
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                acc[kt][r][v] = vec<T>{};
    // At frame f, acc[kt] belongs to the output whose tap kt it is under: f + padding - kt.
    const int64_t begin = m.t_begin - pool.padding.t, end = m.t_end + KT - 1 - pool.padding.t;
    for (int64_t f = begin; f < end; ++f) {
        if (f >= 0 && f < pool.in.t) {
            // What the next line reads and this one does not: it comes from far away, a piece of a token at a time.
            for (int64_t kh = m.h.last; kh < m.h_next; ++kh)
#pragma GCC unroll 32
                for (int position = 0; position < (R - 1) * kStride + 3; ++position)
                    __builtin_prefetch(x + f * frame + kh * line + position * step, 0, 2);
            for (int64_t kh = m.h.first; kh < m.h.last; ++kh) {
                const S *in_line = x + f * frame + kh * line;
                vec<T> w[KT][3][V];
#pragma GCC unroll 8
                for (int kt = 0; kt < KT; ++kt)
#pragma GCC unroll 8
                    for (int kw = 0; kw < 3; ++kw)
#pragma GCC unroll 4
                        for (int v = 0; v < V; ++v)
                            w[kt][kw][v] = load(weight + ((kt * pool.kernel.h + kh) * 3 + kw) * weight_per_tap + v * W);
#pragma GCC unroll 32
                for (int position = 0; position < (R - 1) * kStride + 3; ++position, in_line += step) {
                    if (!(m.present >> position & 1))
                        continue;
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v) {
                        vec<T> in = kTail ? load_partial(in_line, tail) : load(in_line + v * W);
                        keep_vector<T>(in);
#pragma GCC unroll 8
                        for (int r = 0; r < R; ++r)
                            if (position - r * kStride >= 0 && position - r * kStride < 3)
#pragma GCC unroll 8
                                for (int kt = 0; kt < KT; ++kt)
                                    acc[kt][r][v] += in * w[kt][position - r * kStride][v];
                    }
                }
            }
        }
        const int64_t t = f + pool.padding.t - (KT - 1);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                if (t >= m.t_begin)
                    store(rows + ((t - m.t_begin) * R + r) * padded_dim + v * W, acc[KT - 1][r][v]);
#pragma GCC unroll 8
                for (int kt = KT - 1; kt > 0; --kt)
                    acc[kt][r][v] = acc[kt - 1][r][v];
                acc[0][r][v] = vec<T>{};
            }
    }
}

template <class S, int KT, int kStride>
static void march_rows(const March &m, const S *x, const accumulator<S> *weight, int64_t weight_per_tap,
                       accumulator<S> *rows, int64_t head_dim, int64_t padded_dim) {
    constexpr int W = lanes<accumulator<S>>, V = 3 / KT;
    int64_t c = 0;
    if constexpr (V > 1)
        for (; c + V * W <= head_dim; c += V * W)
            march_block<S, KT, kStride, V, false>(m, x, weight, weight_per_tap, c, 0, rows, padded_dim);
    for (; c + W <= head_dim; c += W)
        march_block<S, KT, kStride, 1, false>(m, x, weight, weight_per_tap, c, 0, rows, padded_dim);
    if (c < head_dim)
        march_block<S, KT, kStride, 1, true>(m, x, weight, weight_per_tap, c, int(head_dim - c), rows, padded_dim);
}

// All rows of a march, [t - t_begin][kMarchOutputs][padded_dim]; those of outputs that are not there hold anything.
template <class S>
static void march(const March &m, const S *x, const accumulator<S> *weight, int64_t weight_per_tap,
                  accumulator<S> *rows, int64_t head_dim, int64_t padded_dim) {
    const auto with_stride = [&](auto frames) {
        switch (m.pool->stride.w) {
        case 1:
            return march_rows<S, frames, 1>(m, x, weight, weight_per_tap, rows, head_dim, padded_dim);
        case 2:
            return march_rows<S, frames, 2>(m, x, weight, weight_per_tap, rows, head_dim, padded_dim);
        default:
            return march_rows<S, frames, 3>(m, x, weight, weight_per_tap, rows, head_dim, padded_dim);
        }
    };
    if (m.pool->kernel.t == 3)
        with_stride(std::integral_constant<int, 3>{});
    else
        with_stride(std::integral_constant<int, 1>{});
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
