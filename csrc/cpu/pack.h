// Rewriting rows of the head dim, strided and in a storage type, into what the inner kernels read.
#pragma once

#include "common/grid.h"
#include "cpu/simd.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

// Transposes `rows` rows of D elements into panel[d][i] = scale * row i at d, i < width, a multiple of the vector's lanes.
// Columns from `rows` on are 0.
template <class S>
static void pack_panel(const S *from, int64_t row_stride, int64_t rows, int64_t head_dim, accumulator<S> scale,
                       accumulator<S> *panel, int64_t width) {
    using T = accumulator<S>;
    constexpr int W = lanes<T>;
    for (int64_t i = 0; i < width; i += W)
        for (int64_t d = 0; d < head_dim; d += W) {
            vec<T> block[W];
#pragma GCC unroll 16
            for (int j = 0; j < W; ++j)
                block[j] = i + j < rows ? load_first(from + (i + j) * row_stride + d, head_dim - d) * scale : vec<T>{};
            transpose<T>(block);
            T *const to = panel + d * width + i;
            if (d + W <= head_dim) {
#pragma GCC unroll 16
                for (int j = 0; j < W; ++j)
                    store(to + j * width, block[j]);
            } else {
                for (int j = 0; j < head_dim - d; ++j)
                    store(to + j * width, block[j]);
            }
        }
}

// Rows of D elements into rows of `width` >= D, a multiple of the vector's lanes; elements from D on are 0.
template <class S>
static void pack_rows(const S *from, int64_t row_stride, int64_t rows, int64_t head_dim, accumulator<S> *to, int64_t width) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t d = 0; d < width; d += lanes<accumulator<S>>)
            store(to + i * width + d, load_first(from + i * row_stride + d, head_dim - d));
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
