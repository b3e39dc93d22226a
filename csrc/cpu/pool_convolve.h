// A convolution of tokens with the weights of a window, several outputs along w at once: in the backward of a pooling,
// what it pooled, and the gradient of its tokens.
#pragma once

#include "common/grid.h"
#include "cpu/simd.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

// kConvolveRows x kConvolveVectors accumulators, kConvolveVectors weights and one operand fit the register file.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kConvolveRows = 8, kConvolveVectors = 3;
#elif defined(__AVX2__)
constexpr int kConvolveRows = 4, kConvolveVectors = 3;
#else
constexpr int kConvolveRows = 4, kConvolveVectors = 2;
#endif

// Operands of a convolution: where the first tap's lie, the distance to the next tap's along each axis, and how many
// taps.
template <class S> struct Operands {
    const S *in;
    Size3 in_step;
    int64_t row_step; // from one row's operand to the next row's
    const accumulator<S> *weight;
    Size3 weight_step, taps;
};

// rows[r] = sum over taps of in * weight, R rows and V vectors of the head dim; `tail` < lanes elements if kTail.
template <class S, int R, int V, bool kTail>
MVIT_INLINE void convolve_block(const Operands<S> &o, int64_t c, accumulator<S> *rows, int64_t row_stride, int tail) {
    using T = accumulator<S>;
    constexpr int W = lanes<T>;
    vec<T> acc[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
            acc[r][v] = vec<T>{};
    for (int64_t t = 0; t < o.taps.t; ++t)
        for (int64_t h = 0; h < o.taps.h; ++h) {
            const S *in = o.in + t * o.in_step.t + h * o.in_step.h + c;
            const T *weight = o.weight + t * o.weight_step.t + h * o.weight_step.h + c;
            for (int64_t w = 0; w < o.taps.w; ++w, in += o.in_step.w, weight += o.weight_step.w) {
                vec<T> factor[V];
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v)
                    factor[v] = load(weight + v * W);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                    for (int v = 0; v < V; ++v)
                        acc[r][v] +=
                            (kTail ? load_partial(in + r * o.row_step, tail) : load(in + r * o.row_step + v * W)) *
                            factor[v];
            }
        }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
            store(rows + r * row_stride + c + v * W, acc[r][v]);
}

// Calls f(c, vectors as a constant, whether c is the tail) for blocks of at most N vectors that cover `head_dim`.
template <int N, int W, class F> MVIT_INLINE void for_each_block(int64_t head_dim, const F &f) {
    int64_t c = 0;
    for (; c + N * W <= head_dim; c += N * W)
        f(c, std::integral_constant<int, N>{}, std::false_type{});
    if constexpr (N > 2)
        if (c + 2 * W <= head_dim) {
            f(c, std::integral_constant<int, 2>{}, std::false_type{});
            c += 2 * W;
        }
    if (c + W <= head_dim) {
        f(c, std::integral_constant<int, 1>{}, std::false_type{});
        c += W;
    }
    if (c < head_dim)
        f(c, std::integral_constant<int, 1>{}, std::true_type{});
}

template <class S, int R>
static void convolve_rows(const Operands<S> &o, accumulator<S> *rows, int64_t row_stride, int64_t head_dim) {
    for_each_block<kConvolveVectors, lanes<accumulator<S>>>(head_dim, [&](int64_t c, auto vectors, auto tail) {
        convolve_block<S, R, vectors, tail>(o, c, rows, row_stride, int(head_dim - c));
    });
}

// How many of `left` rows to take at once.
MVIT_INLINE int64_t block_of(int64_t left) {
    return left >= kConvolveRows ? kConvolveRows : left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

template <class S>
static void convolve(const Operands<S> &o, int64_t count, accumulator<S> *rows, int64_t row_stride, int64_t head_dim) {
    if (count == kConvolveRows)
        convolve_rows<S, kConvolveRows>(o, rows, row_stride, head_dim);
    else if (count == 4)
        convolve_rows<S, 4>(o, rows, row_stride, head_dim);
    else if (count == 2)
        convolve_rows<S, 2>(o, rows, row_stride, head_dim);
    else
        convolve_rows<S, 1>(o, rows, row_stride, head_dim);
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
