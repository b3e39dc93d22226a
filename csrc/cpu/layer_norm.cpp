// LayerNorm over channels, forward. One task: rows of some tens of kilobytes. A row is read a few times, from memory
// once: mean, then variance about it, then the result.
#include "common/linear.h"
#include "cpu/level.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
namespace {

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

template <class S, class O> void run(const LayerNormProblem &p, accumulator<S> *memory, const ParallelFor &parallel) {
    using T = accumulator<S>;
    const int64_t padded = round_up(p.channels, lanes<T>);
    T *const weight = memory, *const bias = memory + padded;
    for (int64_t c = 0; c < padded; ++c) {
        weight[c] = 1;
        bias[c] = 0;
    }
    if (p.weight.data)
        read_parameter(weight, p.weight, 0, 1, p.channels);
    if (p.bias.data)
        read_parameter(bias, p.bias, 0, 1, p.channels);
    const int64_t block = max(1, 16384 / p.channels), tasks = ceil_div(p.rows, block);
    const int64_t workers = worker_count(parallel.threads, tasks, 16. * double(p.rows) * double(p.channels));
    for_each_task(parallel, workers, tasks, [&](int64_t, int64_t task) {
        for (int64_t r = task * block; r < min(p.rows, (task + 1) * block); ++r)
            norm_row(static_cast<const S *>(p.x) + r * p.x_stride, p.channels, weight, bias, p.eps,
                     static_cast<O *>(p.y) + r * p.channels);
    });
}

} // namespace

int64_t layer_norm_scratch(const LayerNormProblem &p, int64_t) {
    return 2 * (p.channels + kVectorBytes) * int64_t(size_of_accumulator(p.dtype));
}

void layer_norm(const LayerNormProblem &p, void *scratch, const ParallelFor &parallel) {
    with_storage(p.dtype, [&](auto storage) {
        using S = decltype(storage);
        auto *const memory = static_cast<accumulator<S> *>(scratch);
        if (p.y_dtype == p.dtype)
            run<S, S>(p, memory, parallel);
        else if (p.y_dtype == DType::bf16)
            run<float, bf16>(p, static_cast<float *>(scratch), parallel);
        else
            run<float, f16>(p, static_cast<float *>(scratch), parallel);
    });
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
