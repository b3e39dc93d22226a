// The matrix products of the attention kernels, blocked for the register file.
//
//   panel     lanes = keys: rows of the head dim with a panel of keys, both transposed by pack_panel
//   rows      lanes = head dim: sums over keys, each key's row of the head dim weighted by one number per row
//   columns   lanes = head dim: the transposed product, sums over rows for each key
//
// What is summed over counts elements of kPair (pairs.h): of the head dim for panels, of keys for rows, of rows for
// columns.
#pragma once

#include "common/grid.h"
#include "cpu/pairs.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

// Register blocks: kRows x kPanelVectors for panels, kSumRows x kSumVectors where the head dim is in the lanes.
#if defined(__AVX512F__)
constexpr int kRows = 12, kPanelVectors = 2, kSumRows = 4, kSumVectors = 6;
#elif defined(__AVX2__)
constexpr int kRows = 6, kPanelVectors = 2, kSumRows = 6, kSumVectors = 2;
#elif defined(__aarch64__)
constexpr int kRows = 4, kPanelVectors = 4, kSumRows = 4, kSumVectors = 4;
#else
constexpr int kRows = 4, kPanelVectors = 2, kSumRows = 4, kSumVectors = 2;
#endif

template <class T> constexpr int64_t kPanel = kPanelVectors * lanes<T>;                // keys per panel
template <class T> constexpr int64_t kRowLanes = ceil_div(kRows, lanes<T>) * lanes<T>; // a packed block of kRows rows

// Calls f with the constant n, 1 <= n <= N.
template <int N, class F> MVIT_INLINE void with_constant(int64_t n, const F &f) {
    if constexpr (N > 1)
        if (n < N)
            return with_constant<N - 1>(n, f);
    f(std::integral_constant<int, N>{});
}

// to[r][0 .. V vectors) = sum over d of q[d][r] * k[d][...] (+ bias[r][...] if kBias), rows of `to` kPanel apart. Only
// pairs, which can't be packed with it, are multiplied by `scale`.
template <class S, int R, int V, bool kBias, class T = accumulator<S>>
void panel_block(const T *q, const T *k, int64_t pack_dim, T scale, T *to, const T *bias, int64_t bias_stride) {
    constexpr int W = lanes<T>;
    vec<T> acc[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            acc[r][v] = vec<T>{};
    for (int64_t d = 0; d < pack_dim; ++d, q += kRowLanes<T>, k += kPanel<T>) {
        vec<T> keys[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            keys[v] = load(k + v * W);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                multiply_add<S>(acc[r][v], keys[v], q[r]);
    }
    if constexpr (kPair<S> > 1) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                acc[r][v] *= scale;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            store(to + r * kPanel<T> + v * W, kBias ? acc[r][v] + load(bias + r * bias_stride + v * W) : acc[r][v]);
}

// The same for 1 <= rows <= kRows and 1 <= vectors <= kPanelVectors; rows up to the next block size are read and
// written.
template <class S, bool kBias, class T = accumulator<S>>
void panel_product(const T *q, const T *k, int64_t pack_dim, T scale, T *to, const T *bias, int64_t bias_stride,
                   int64_t rows, int64_t vectors) {
    with_constant<kPanelVectors>(vectors, [&](auto v) {
        if (rows > 2 * kRows / 3)
            panel_block<S, kRows, v, kBias>(q, k, pack_dim, scale, to, bias, bias_stride);
        else if (rows > kRows / 3)
            panel_block<S, 2 * kRows / 3, v, kBias>(q, k, pack_dim, scale, to, bias, bias_stride);
        else
            panel_block<S, kRows / 3, v, kBias>(q, k, pack_dim, scale, to, bias, bias_stride);
    });
}

// sums[r][0 .. V vectors) += sum over keys of p[r][key] * x[key][...]. Starting from zero and adding once at the end
// keeps the rounding of a long sum that of its parts.
template <class S, int R, int V, class T = accumulator<S>>
void rows_block(const T *p, int64_t p_stride, const T *x, int64_t x_stride, int64_t keys, T *sums,
                int64_t sums_stride) {
    constexpr int W = lanes<T>;
    vec<T> acc[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < V; ++c)
            acc[r][c] = vec<T>{};
    for (int64_t key = 0; key < keys; ++key, ++p, x += x_stride) {
        vec<T> values[V];
#pragma GCC unroll 8
        for (int c = 0; c < V; ++c)
            values[c] = load(x + c * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int c = 0; c < V; ++c)
                multiply_add<S>(acc[r][c], values[c], p[r * p_stride]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < V; ++c)
            store(sums + r * sums_stride + c * W, load(sums + r * sums_stride + c * W) + acc[r][c]);
}

// sums[j][0 .. V vectors) += sum over rows of p[row][j] * x[row][...], j < K.
template <class S, int K, int V, class T = accumulator<S>>
void columns_block(const T *p, int64_t p_stride, const T *x, int64_t x_stride, int64_t rows, T *sums,
                   int64_t sums_stride) {
    constexpr int W = lanes<T>;
    vec<T> acc[K][V];
#pragma GCC unroll 8
    for (int j = 0; j < K; ++j)
#pragma GCC unroll 8
        for (int c = 0; c < V; ++c)
            acc[j][c] = vec<T>{};
    for (int64_t row = 0; row < rows; ++row, p += p_stride, x += x_stride) {
        vec<T> values[V];
#pragma GCC unroll 8
        for (int c = 0; c < V; ++c)
            values[c] = load(x + c * W);
#pragma GCC unroll 8
        for (int j = 0; j < K; ++j)
#pragma GCC unroll 8
            for (int c = 0; c < V; ++c)
                multiply_add<S>(acc[j][c], values[c], p[j]);
    }
#pragma GCC unroll 8
    for (int j = 0; j < K; ++j)
#pragma GCC unroll 8
        for (int c = 0; c < V; ++c)
            store(sums + j * sums_stride + c * W, load(sums + j * sums_stride + c * W) + acc[j][c]);
}

// Calls f(first vector, number of them as a constant) for blocks of at most kSumVectors that cover `vectors`.
template <class F> MVIT_INLINE void for_each_column_block(int64_t vectors, const F &f) {
    const int64_t blocks = ceil_div(vectors, kSumVectors);
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = vectors * block / blocks, last = vectors * (block + 1) / blocks;
        with_constant<kSumVectors>(last - first, [&](auto count) { f(first, count); });
    }
}

// sums[r][...] += sum over keys of p[r][key] * x[key][...] for any number of rows; rows of x and sums in whole vectors.
template <class S, class T = accumulator<S>>
void rows_product(const T *p, int64_t p_stride, int64_t rows, const T *x, int64_t x_stride, int64_t keys, T *sums,
                  int64_t sums_stride, int64_t padded_dim) {
    for_each_column_block(padded_dim / lanes<T>, [&](int64_t first, auto count) {
        const int64_t c = first * lanes<T>;
        for (int64_t r = 0; r < rows; r += kSumRows)
            with_constant<kSumRows>(min(kSumRows, rows - r), [&](auto block_rows) {
                rows_block<S, block_rows, count>(p + r * p_stride, p_stride, x + c, x_stride, keys,
                                                 sums + r * sums_stride + c, sums_stride);
            });
    });
}

// sums[key][...] += sum over rows of p[row][key] * x[row][...] for any number of keys.
template <class S, class T = accumulator<S>>
void columns_product(const T *p, int64_t p_stride, int64_t keys, const T *x, int64_t x_stride, int64_t rows, T *sums,
                     int64_t sums_stride, int64_t padded_dim) {
    for_each_column_block(padded_dim / lanes<T>, [&](int64_t first, auto count) {
        const int64_t c = first * lanes<T>;
        for (int64_t key = 0; key < keys; key += kSumRows)
            with_constant<kSumRows>(min(kSumRows, keys - key), [&](auto block_keys) {
                columns_block<S, block_keys, count>(p + key, p_stride, x + c, x_stride, rows,
                                                    sums + key * sums_stride + c, sums_stride);
            });
    });
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
