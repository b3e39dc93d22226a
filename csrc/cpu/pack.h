// Rewriting rows of the head dim, strided and in a storage type, into what the inner kernels read.
#pragma once

#include "common/grid.h"
#include "cpu/simd.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

// Transposes up to a vector's lanes of rows of D elements: to[d * to_stride + i] = scale * row i at d. Lanes from
// `rows` >= 1 on repeat the last row.
template <class S>
static void pack_lanes(const S *from, int64_t row_stride, int64_t rows, int64_t head_dim, accumulator<S> scale,
                       accumulator<S> *to, int64_t to_stride) {
    using T = accumulator<S>;
    constexpr int W = lanes<T>;
    const S *row[W];
#pragma GCC unroll 16
    for (int j = 0; j < W; ++j)
        row[j] = from + min(j, rows - 1) * row_stride;
    vec<T> block[W];
    int64_t d = 0;
    for (; d + W <= head_dim; d += W) {
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j)
            block[j] = load(row[j] + d) * scale;
        transpose<T>(block);
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j)
            store(to + (d + j) * to_stride, block[j]);
    }
    if (d < head_dim) {
        for (int j = 0; j < W; ++j)
            block[j] = load_partial(row[j] + d, int(head_dim - d)) * scale;
        transpose<T>(block);
        for (int j = 0; j < head_dim - d; ++j)
            store(to + (d + j) * to_stride, block[j]);
    }
}

// The same for `width` lanes, several vectors: to[d][i], i < width. Vectors without a row of their own repeat the last
// one.
template <class S>
static void pack_panel(const S *from, int64_t row_stride, int64_t rows, int64_t head_dim, accumulator<S> scale,
                       accumulator<S> *to, int64_t width) {
    for (int64_t i = 0; i < width; i += lanes<accumulator<S>>) {
        const int64_t first = min(i, rows - 1);
        pack_lanes(from + first * row_stride, row_stride, rows - first, head_dim, scale, to + i, width);
    }
}

// Rows of D elements into rows of `width` >= D, a multiple of the vector's lanes; elements from D on are 0.
template <class S>
static void pack_rows(const S *from, int64_t row_stride, int64_t rows, int64_t head_dim, accumulator<S> *to,
                      int64_t width) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t d = 0; d < width; d += lanes<accumulator<S>>)
            store(to + i * width + d, load_first(from + i * row_stride + d, head_dim - d));
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
