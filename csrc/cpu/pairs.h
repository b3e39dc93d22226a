// Products of bfloat16 by AVX512-BF16's dot product: a lane of 32 bits holds two neighbours along the summed axis, and
// one instruction adds both their products to a float32 sum.
//
// With kPair<S> = 1 there is no such instruction, or S is another type, and an element is one accumulation type T.
// Otherwise an element is a pair that travels in a T as plain bits: packing, panels and blocks are the same, over half
// as many elements. Products are exact and sums in float32 as in the emulation; subnormal numbers count as zero.
#pragma once

#include "cpu/pack.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

template <class S> constexpr int64_t kPair = 1;
#if defined(__AVX512BF16__)
template <> constexpr int64_t kPair<bf16> = 2;
#endif

// acc += x * y per lane, y for all lanes.
template <class S> MVIT_INLINE void multiply_add(vec<accumulator<S>> &acc, vec<accumulator<S>> x, accumulator<S> y) {
#if defined(__AVX512BF16__)
    if constexpr (kPair<S> == 2) {
        const vec<float> all = _mm512_set1_ps(y);
        acc = _mm512_dpbf16_ps(acc, bits_as<__m512bh>(x), bits_as<__m512bh>(all));
        return;
    }
#endif
    acc += x * y;
}

#if defined(__AVX512BF16__)
// Lanes of low, then of high, rounded.
MVIT_INLINE vec<float> round_both(vec<float> low, vec<float> high) {
    return bits_as<vec<float>>(_mm512_cvtne2ps_pbh(high, low));
}

MVIT_INLINE vec<float> load_pairs(const bf16 *p, int64_t n) { // n >= 1 elements, at most two per lane
    return bits_as<vec<float>>(_mm512_maskz_loadu_epi16(n >= 32 ? ~0u : (1u << n) - 1, p));
}

// Lane i: element i of low, then of high.
MVIT_INLINE vec<float> interleave(halves low, halves high) {
    return bits_as<vec<float>>(zero_extend(low) | zero_extend(high) << 16);
}
#endif

// pack_panel for the products: to[d][i], an element holding kPair of the head dim; the last one is filled with zero.
// Pairs are not scaled, which would round them.
template <class S>
static void pack_product_panel(const S *from, int64_t row_stride, int64_t rows, int64_t head_dim, accumulator<S> scale,
                               accumulator<S> *to, int64_t width) {
#if defined(__AVX512BF16__)
    if constexpr (kPair<S> == 2) {
        constexpr int W = lanes<float>;
        for (int64_t first = 0; first < width; first += W)
            for (int64_t d = 0; d < head_dim; d += 2 * W) {
                const int64_t n = min(2 * W, head_dim - d);
                vec<float> block[W];
#pragma GCC unroll 16
                for (int j = 0; j < W; ++j)
                    block[j] = load_pairs(from + min(first + j, rows - 1) * row_stride + d, n);
                transpose<float>(block);
                for (int64_t j = 0; j < ceil_div(n, 2); ++j)
                    store(to + (d / 2 + j) * width + first, block[j]);
            }
        return;
    }
#endif
    pack_panel(from, row_stride, rows, head_dim, scale, to, width);
}

// pack_rows for the products: to[i][d], an element holding kPair rows; the last one is filled with zero.
template <class S>
static void pack_product_rows(const S *from, int64_t row_stride, int64_t rows, int64_t head_dim, accumulator<S> *to,
                              int64_t width) {
#if defined(__AVX512BF16__)
    if constexpr (kPair<S> == 2) {
        constexpr int W = lanes<float>;
        for (int64_t i = 0; i < rows; i += 2, from += 2 * row_stride, to += width)
            for (int64_t d = 0; d < width; d += W) {
                const int n = int(min(W, head_dim - d));
                store(to + d, interleave(load_halves_partial(from + d, n),
                                         i + 1 < rows ? load_halves_partial(from + row_stride + d, n) : halves{}));
            }
        return;
    }
#endif
    pack_rows(from, row_stride, rows, head_dim, to, width);
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
