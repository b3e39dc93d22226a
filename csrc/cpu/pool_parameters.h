// The parameters of one pooling and its norm in the accumulation type, rows padded to whole vectors.
#pragma once

#include "common/grid.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

template <class T> static void fill(T *to, int64_t n, T value) {
    for (int64_t i = 0; i < n; ++i)
        to[i] = value;
}

template <class T> struct PoolParameters {
    T *weight;                  // [heads or 1][tap][padded D]; none for a maximum, one row for an average
    int64_t weight_per_head;    // 0 where the heads share it
    int64_t weight_per_tap;     // 0 for an average
    T *norm_weight, *norm_bias; // [padded D] with a norm
};

template <class T>
static PoolParameters<T> take_parameters(const PoolBranch &pool, int64_t heads, int64_t padded_dim, Arena &arena) {
    PoolParameters<T> p = {};
    const bool per_head = pool.mode == PoolMode::conv && pool.per_head_weight;
    const int64_t taps = pool.mode == PoolMode::conv ? volume(pool.kernel) : 1;
    if (pool.mode != PoolMode::max)
        p.weight = arena.take<T>((per_head ? heads : 1) * taps * padded_dim);
    p.weight_per_tap = pool.mode == PoolMode::conv ? padded_dim : 0;
    p.weight_per_head = per_head ? taps * padded_dim : 0;
    if (pool.norm) {
        p.norm_weight = arena.take<T>(padded_dim);
        p.norm_bias = arena.take<T>(padded_dim);
    }
    return p;
}

template <class T>
static void read_parameters(const PoolBranch &pool, int64_t heads, int64_t head_dim, int64_t padded_dim,
                            const PoolParameters<T> &p) {
    const int64_t taps = volume(pool.kernel);
    if (pool.mode == PoolMode::avg)
        fill(p.weight, padded_dim, T(1) / T(taps));
    if (pool.mode == PoolMode::conv)
        for (int64_t head = 0; head < (pool.per_head_weight ? heads : 1); ++head)
            for (int64_t tap = 0; tap < taps; ++tap) {
                T *const to = p.weight + (head * taps + tap) * padded_dim;
                read_parameter(to, pool.weight, head * head_dim * taps + tap, taps, head_dim);
                fill(to + head_dim, padded_dim - head_dim, T(0));
            }
    if (pool.norm) {
        fill(p.norm_weight, padded_dim, T(1));
        fill(p.norm_bias, padded_dim, T(0));
        if (pool.norm_weight.data)
            read_parameter(p.norm_weight, pool.norm_weight, 0, 1, head_dim);
        if (pool.norm_bias.data)
            read_parameter(p.norm_bias, pool.norm_bias, 0, 1, head_dim);
    }
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
