// How many multiply-adds the level's kernels could do at most: a loop of nothing else, in registers.
#include "cpu/level.h"
#include "cpu/pairs.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSums = 24; // as in the products; enough to hide an FMA's latency on two units
#else
constexpr int kSums = 12;
#endif

template <class S> int64_t multiply_adds(int64_t rounds) {
    using T = accumulator<S>;
    vec<T> sums[kSums] = {}, x = broadcast<T>(T(0x1p-30));
    T y = T(0x1p-30);
    keep_vector<T>(x); // or the compiler adds the product of two constants
    asm("" : "+m"(y));
    for (int64_t i = 0; i < rounds; ++i)
#pragma GCC unroll 24
        for (int j = 0; j < kSums; ++j) {
            multiply_add<S>(sums[j], x, y);
            keep_vector<T>(sums[j]);
        }
#pragma GCC unroll 24
    for (int j = 0; j < kSums; ++j)
        asm volatile("" ::MVIT_VECTOR_REGISTER(sums[j])); // or it does nothing at all
    return rounds * kSums * lanes<T> * kPair<S>;
}

} // namespace

int64_t multiply_add_peak(DType dtype, int64_t rounds) {
    return with_storage(dtype, [&](auto storage) { return multiply_adds<decltype(storage)>(rounds); });
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
