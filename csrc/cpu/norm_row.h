// LayerNorm of one row. It is read a few times, from memory once: mean, then variance about it, then the result.
#pragma once

#include "common/grid.h"
#include "cpu/simd.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

// Calls f(first channel, number of them as far as one vector goes), four vectors apart in the accumulators they feed.
template <class T, class F> MVIT_INLINE T sum_of_vectors(int64_t channels, const F &f) {
    constexpr int L = lanes<T>;
    vec<T> sums[4] = {};
    int64_t c = 0;
    for (; c + 4 * L <= channels; c += 4 * L)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
            sums[i] += f(c + i * L, L);
    for (; c < channels; c += L)
        sums[0] += f(c, channels - c);
    return sum_lanes<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class S, class O>
void norm_row(const S *x, int64_t channels, const accumulator<S> *weight, const accumulator<S> *bias, double eps,
              O *y) {
    using T = accumulator<S>;
    constexpr int L = lanes<T>;
    const T rough = sum_of_vectors<T>(channels, [&](int64_t c, int64_t n)
                                                    __attribute__((always_inline)) { return load_first(x + c, n); }) /
                    T(channels);
    const auto centred = [&](int64_t c, int64_t n) __attribute__((always_inline)) {
        const vec<T> value = load_first(x + c, n) - rough, zero = {};
        return n >= L || first_lanes<T>(int(n)) ? value : zero;
    };
    // What rounding left in the mean: it matters where the mean is large against the deviation from it.
    const T rest = sum_of_vectors<T>(channels, centred) / T(channels);
    const T variance = sum_of_vectors<T>(channels,
                                         [&](int64_t c, int64_t n) __attribute__((always_inline)) {
                                             const vec<T> value = centred(c, n);
                                             return value * value;
                                         }) /
                           T(channels) -
                       rest * rest;
    const T factor = T(1) / sqrt(broadcast<T>(variance + T(eps)))[0];
    for (int64_t c = 0; c < channels; c += L) {
        const vec<T> normed = (load_first(x + c, channels - c) - rough - rest) * factor;
        store_first(y + c, normed * load(weight + c) + load(bias + c), channels - c);
    }
}

// Weight (1 where there is none) and bias (0) as norm_row reads them: in whole vectors.
template <class T> void read_norm(Parameter weight, Parameter bias, int64_t channels, T *to_weight, T *to_bias) {
    const int64_t padded = round_up(channels, lanes<T>);
    for (int64_t c = 0; c < padded; ++c) {
        to_weight[c] = 1;
        to_bias[c] = 0;
    }
    if (weight.data)
        read_parameter(to_weight, weight, 0, 1, channels);
    if (bias.data)
        read_parameter(to_bias, bias, 0, 1, channels);
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
