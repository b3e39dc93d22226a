// The end of a pooling: LayerNorm over the head dim if there is one, one rounding, store.
#pragma once

#include "cpu/pool_parameters.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

// Rows that are normalised together: their sums across lanes are then made by few shuffles.
template <class T> constexpr int kNormRows = lanes<T> < 8 ? lanes<T> : 8;

// N rows of the padded head dim, whose padding is 0, each to a place of its own.
template <class S, int N>
static void finish_rows(const PoolBranch &pool, const PoolParameters<accumulator<S>> &p,
                        const accumulator<S> *const *rows, S *const *out, int64_t head_dim) {
    using T = accumulator<S>;
    constexpr int W = lanes<T>;
    const int64_t whole = head_dim / W * W;
    const int tail = int(head_dim - whole);
    if (!pool.norm) {
        for (int r = 0; r < N; ++r)
            for (int64_t c = 0; c < head_dim; c += W)
                store_first(out[r] + c, load(rows[r] + c), head_dim - c);
        return;
    }
    vec<T> sums[N] = {};
    for (int64_t c = 0; c < head_dim; c += W)
#pragma GCC unroll 8
        for (int r = 0; r < N; ++r)
            sums[r] += load(rows[r] + c);
    const vec<T> mean = sum_lanes_of_rows<T, N>(sums) / T(head_dim);
    vec<T> squares[N] = {};
    for (int64_t c = 0; c < whole; c += W)
#pragma GCC unroll 8
        for (int r = 0; r < N; ++r) {
            const vec<T> centred = load(rows[r] + c) - mean[r];
            squares[r] += centred * centred;
        }
    if (tail)
#pragma GCC unroll 8
        for (int r = 0; r < N; ++r) {
            const vec<T> centred = first_lanes<T>(tail) ? load(rows[r] + whole) - mean[r] : vec<T>{};
            squares[r] += centred * centred;
        }
    const vec<T> variance = sum_lanes_of_rows<T, N>(squares) / T(head_dim);
    const vec<T> scale = T(1) / sqrt(variance + T(pool.norm_eps));
    for (int64_t c = 0; c < whole; c += W) {
        const vec<T> weight = load(p.norm_weight + c), bias = load(p.norm_bias + c);
#pragma GCC unroll 8
        for (int r = 0; r < N; ++r)
            store(out[r] + c, (load(rows[r] + c) - mean[r]) * scale[r] * weight + bias);
    }
    if (tail) {
        const vec<T> weight = load(p.norm_weight + whole), bias = load(p.norm_bias + whole);
#pragma GCC unroll 8
        for (int r = 0; r < N; ++r)
            store_partial(out[r] + whole, (load(rows[r] + whole) - mean[r]) * scale[r] * weight + bias, tail);
    }
}

// Any number of rows, as many at a time as it has room for. The last ones that would be too few repeat the last row.
template <class S> class Finish {
    using T = accumulator<S>;

public:
    Finish(const PoolBranch &pool, const PoolParameters<T> &parameters, int64_t head_dim)
        : pool_(pool), parameters_(parameters), head_dim_(head_dim) {}

    void add(const T *row, S *out) {
        rows_[count_] = row;
        out_[count_] = out;
        if (++count_ == kNormRows<T>)
            run();
    }

    void run() {
        if (count_ == 1)
            finish_rows<S, 1>(pool_, parameters_, rows_, out_, head_dim_);
        else if (count_ > 1) {
            for (int i = count_; i < kNormRows<T>; ++i) {
                rows_[i] = rows_[count_ - 1];
                out_[i] = out_[count_ - 1];
            }
            finish_rows<S, kNormRows<T>>(pool_, parameters_, rows_, out_, head_dim_);
        }
        count_ = 0;
    }

private:
    const PoolBranch &pool_;
    const PoolParameters<T> &parameters_;
    int64_t head_dim_;
    const T *rows_[kNormRows<T>];
    S *out_[kNormRows<T>];
    int count_ = 0;
};

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
