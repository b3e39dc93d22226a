// Vectors of the level being compiled, on the compiler's vector extensions: one source for every instruction set.
//
// vec<T> is a register of T = float or double, the two accumulation types. Tensors hold a storage type S: float, double,
// bf16 or f16; load() widens S to its accumulation type, store() rounds back (to nearest even, NaN kept). Arithmetic is
// written with operators: `acc += x * w` is one FMA where the level has it, and a scalar operand is broadcast.
//
// A partial load or store touches exactly n < lanes elements; the other lanes are read as 0.
#pragma once

#include "common/problem.h"

#include <cstddef>
#include <cstdint>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

#define MVIT_INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

// ---- Types ----

template <class T> struct VecOf;
template <> struct VecOf<float> {
    typedef float type __attribute__((vector_size(kVectorBytes)));
    typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
    typedef int32_t ints __attribute__((vector_size(kVectorBytes)));
    typedef uint32_t bits __attribute__((vector_size(kVectorBytes)));
};
template <> struct VecOf<double> {
    typedef double type __attribute__((vector_size(kVectorBytes)));
    typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
    typedef int64_t ints __attribute__((vector_size(kVectorBytes)));
    typedef uint64_t bits __attribute__((vector_size(kVectorBytes)));
};
template <class T> using vec = typename VecOf<T>::type;
template <class T> using ivec = typename VecOf<T>::ints; // also what a comparison of vec<T> gives
template <class T> using uvec = typename VecOf<T>::bits;
template <class T> constexpr int lanes = kVectorBytes / int(sizeof(T));

// As many 16-bit elements as vec<float> has lanes.
typedef uint16_t halves __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t halves_unaligned __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));

template <class S> struct AccumulatorOf {
    using type = float;
};
template <> struct AccumulatorOf<double> {
    using type = double;
};
template <class S> using accumulator = typename AccumulatorOf<S>::type;

// Calls f with a value of the storage type that `dtype` names.
template <class F> MVIT_INLINE auto with_storage(DType dtype, const F &f) {
    switch (dtype) {
    case DType::bf16:
        return f(bf16{});
    case DType::f16:
        return f(f16{});
    case DType::f64:
        return f(double{});
    default:
        return f(float{});
    }
}

// ---- Lane-wise basics ----

template <class T> MVIT_INLINE vec<T> broadcast(T x) { return x - vec<T>{}; } // x - 0 is x, also for -0

// The larger one; y where either is NaN.
template <class T> MVIT_INLINE vec<T> max_or_second(vec<T> x, vec<T> y) { return x > y ? x : y; }

template <class To, class From> MVIT_INLINE To bits_as(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &x, sizeof(to));
    return to;
}

// Lane i of the result is lane I[i] of x followed by y.
template <class T, int... I> MVIT_INLINE vec<T> shuffle(vec<T> x, vec<T> y) {
#if defined(__clang__)
    return __builtin_shufflevector(x, y, I...);
#else
    return __builtin_shuffle(x, y, ivec<T>{I...});
#endif
}

// ---- Load and store ----

template <class S> MVIT_INLINE void copy_few(void *to, const void *from, int n) {
    for (int i = 0; i < n; ++i)
        __builtin_memcpy(static_cast<S *>(to) + i, static_cast<const S *>(from) + i, sizeof(S));
}

MVIT_INLINE vec<float> load(const float *p) { return *reinterpret_cast<const VecOf<float>::unaligned *>(p); }
MVIT_INLINE vec<double> load(const double *p) { return *reinterpret_cast<const VecOf<double>::unaligned *>(p); }
MVIT_INLINE void store(float *p, vec<float> x) { *reinterpret_cast<VecOf<float>::unaligned *>(p) = x; }
MVIT_INLINE void store(double *p, vec<double> x) { *reinterpret_cast<VecOf<double>::unaligned *>(p) = x; }

MVIT_INLINE halves load_halves(const void *p) { return *static_cast<const halves_unaligned *>(p); }
MVIT_INLINE void store_halves(void *p, halves x) { *static_cast<halves_unaligned *>(p) = x; }

#if defined(__AVX512F__)
MVIT_INLINE vec<float> load_partial(const float *p, int n) { return _mm512_maskz_loadu_ps((1u << n) - 1, p); }
MVIT_INLINE vec<double> load_partial(const double *p, int n) { return _mm512_maskz_loadu_pd((1u << n) - 1, p); }
MVIT_INLINE halves load_halves_partial(const void *p, int n) {
    return bits_as<halves>(_mm256_maskz_loadu_epi16((1u << n) - 1, p));
}
MVIT_INLINE void store_partial(float *p, vec<float> x, int n) { _mm512_mask_storeu_ps(p, (1u << n) - 1, x); }
MVIT_INLINE void store_partial(double *p, vec<double> x, int n) { _mm512_mask_storeu_pd(p, (1u << n) - 1, x); }
MVIT_INLINE void store_halves_partial(void *p, halves x, int n) {
    _mm256_mask_storeu_epi16(p, (1u << n) - 1, bits_as<__m256i>(x));
}
#else
template <class V, class S> MVIT_INLINE V load_few(const void *p, int n) {
    V x = {};
    copy_few<S>(&x, p, n);
    return x;
}
MVIT_INLINE vec<float> load_partial(const float *p, int n) { return load_few<vec<float>, float>(p, n); }
MVIT_INLINE vec<double> load_partial(const double *p, int n) { return load_few<vec<double>, double>(p, n); }
MVIT_INLINE halves load_halves_partial(const void *p, int n) { return load_few<halves, uint16_t>(p, n); }
MVIT_INLINE void store_partial(float *p, vec<float> x, int n) { copy_few<float>(p, &x, n); }
MVIT_INLINE void store_partial(double *p, vec<double> x, int n) { copy_few<double>(p, &x, n); }
MVIT_INLINE void store_halves_partial(void *p, halves x, int n) { copy_few<uint16_t>(p, &x, n); }
#endif

// ---- bfloat16 and float16 ----

MVIT_INLINE vec<float> widen(bf16, halves x) {
    return bits_as<vec<float>>(__builtin_convertvector(x, uvec<float>) << 16);
}

// Integer rounding rather than vcvtneps2bf16, which flushes subnormal numbers to zero.
MVIT_INLINE halves narrow(bf16, vec<float> x) {
    const uvec<float> u = bits_as<uvec<float>>(x);
    const uvec<float> rounded = u + 0x7fff + ((u >> 16) & 1);
    const uvec<float> quiet_nan = u | 0x400000;
    return __builtin_convertvector((x == x ? rounded : quiet_nan) >> 16, halves);
}

#if defined(__AVX512F__)
// Masked by all ones: GCC 12 warns of an uninitialised variable inside the unmasked intrinsics.
MVIT_INLINE vec<float> widen(f16, halves x) { return _mm512_maskz_cvtph_ps(0xffff, bits_as<__m256i>(x)); }
MVIT_INLINE halves narrow(f16, vec<float> x) {
    return bits_as<halves>(_mm512_maskz_cvtps_ph(0xffff, x, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
MVIT_INLINE vec<float> widen(f16, halves x) { return _mm256_cvtph_ps(bits_as<__m128i>(x)); }
MVIT_INLINE halves narrow(f16, vec<float> x) { return bits_as<halves>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__aarch64__)
typedef __fp16 native_halves __attribute__((vector_size(kVectorBytes / 2)));
MVIT_INLINE vec<float> widen(f16, halves x) {
    return __builtin_convertvector(bits_as<native_halves>(x), vec<float>);
}
MVIT_INLINE halves narrow(f16, vec<float> x) { return bits_as<halves>(__builtin_convertvector(x, native_halves)); }
#else
// Exponent and mantissa shifted into place read as x * 2^-112; one exact product undoes that, also for subnormals.
MVIT_INLINE vec<float> widen(f16, halves x) {
    const uvec<float> u = __builtin_convertvector(x, uvec<float>);
    const uvec<float> magnitude = (u & 0x7fff) << 13;
    const uvec<float> finite = bits_as<uvec<float>>(bits_as<vec<float>>(magnitude) * 0x1p112f);
    const uvec<float> special = magnitude | 0x7f800000; // infinity and NaN
    return bits_as<vec<float>>((magnitude >= 0x7c00u << 13 ? special : finite) | (u & 0x8000) << 16);
}
MVIT_INLINE halves narrow(f16, vec<float> x) {
    const uvec<float> u = bits_as<uvec<float>>(x);
    const uvec<float> magnitude = u & 0x7fffffff;
    // Normal results: round at bit 13 and move the exponent's bias from 127 to 15.
    const uvec<float> normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
    // Results below 2^-14: adding 0.5 lets the FPU round at 2^-24, the last bit of a subnormal float16.
    const uvec<float> subnormal = bits_as<uvec<float>>(bits_as<vec<float>>(magnitude) + 0.5f) - 0x3f000000;
    uvec<float> result = magnitude < 0x38800000 ? subnormal : normal;
    const uvec<float> infinity = uvec<float>{} + 0x7c00;
    result = magnitude >= 0x477ff000 ? infinity : result; // from 65520 on
    const uvec<float> nan = 0x7e00 | magnitude >> 13;
    result = magnitude > 0x7f800000 ? nan : result;
    return __builtin_convertvector((result & 0x7fff) | (u & 0x80000000) >> 16, halves);
}
#endif

MVIT_INLINE vec<float> load(const bf16 *p) { return widen(bf16{}, load_halves(p)); }
MVIT_INLINE vec<float> load(const f16 *p) { return widen(f16{}, load_halves(p)); }
MVIT_INLINE vec<float> load_partial(const bf16 *p, int n) { return widen(bf16{}, load_halves_partial(p, n)); }
MVIT_INLINE vec<float> load_partial(const f16 *p, int n) { return widen(f16{}, load_halves_partial(p, n)); }
MVIT_INLINE void store(bf16 *p, vec<float> x) { store_halves(p, narrow(bf16{}, x)); }
MVIT_INLINE void store(f16 *p, vec<float> x) { store_halves(p, narrow(f16{}, x)); }
MVIT_INLINE void store_partial(bf16 *p, vec<float> x, int n) { store_halves_partial(p, narrow(bf16{}, x), n); }
MVIT_INLINE void store_partial(f16 *p, vec<float> x, int n) { store_halves_partial(p, narrow(f16{}, x), n); }

// For a last vector of n >= 1 lanes that may be whole.
template <class S> MVIT_INLINE vec<accumulator<S>> load_first(const S *p, int64_t n) {
    return n >= lanes<accumulator<S>> ? load(p) : load_partial(p, int(n));
}
template <class S> MVIT_INLINE void store_first(S *p, vec<accumulator<S>> x, int64_t n) {
    if (n >= lanes<accumulator<S>>)
        store(p, x);
    else
        store_partial(p, x, int(n));
}

MVIT_INLINE float widen(bf16 x) { return bits_as<float>(uint32_t(x.bits) << 16); }
MVIT_INLINE float widen(f16 x) { return widen(f16{}, halves{x.bits})[0]; }
MVIT_INLINE float widen(float x) { return x; }
MVIT_INLINE double widen(double x) { return x; }

// The lanes below n.
template <class T> MVIT_INLINE ivec<T> first_lanes(int n) {
    ivec<T> index;
#pragma GCC unroll 16
    for (int i = 0; i < lanes<T>; ++i)
        index[i] = i;
    return index < n;
}

// ---- Parameters, whose dtype need not be that of the tensors ----

// to[i] = from[first + i * step], i < n
template <class T> static void read_parameter(T *to, Parameter from, int64_t first, int64_t step, int64_t n) {
    with_storage(from.dtype, [&](auto storage) {
        const auto *p = static_cast<const decltype(storage) *>(from.data) + first;
        for (int64_t i = 0; i < n; ++i)
            to[i] = T(widen(p[i * step]));
    });
}

// ---- Across lanes ----

namespace detail {
template <class T, int S, int... L> MVIT_INLINE vec<T> rotate(vec<T> x, std::integer_sequence<int, L...>) {
    return shuffle<T, ((L + S) % lanes<T>)...>(x, x);
}
template <class T, int S, class F> MVIT_INLINE vec<T> reduce(vec<T> x, const F &f) {
    if constexpr (S == 0)
        return x;
    else
        return reduce<T, S / 2>(f(x, rotate<T, S>(x, std::make_integer_sequence<int, lanes<T>>{})), f);
}
} // namespace detail

template <class T> MVIT_INLINE T sum_lanes(vec<T> x) {
    return detail::reduce<T, lanes<T> / 2>(x, [](vec<T> a, vec<T> b) __attribute__((always_inline)) { return a + b; })[0];
}
// NaN lanes may or may not win.
template <class T> MVIT_INLINE T max_lanes(vec<T> x) {
    return detail::reduce<T, lanes<T> / 2>(
        x, [](vec<T> a, vec<T> b) __attribute__((always_inline)) { return max_or_second<T>(a, b); })[0];
}

namespace detail {
// One step of the transposition: swaps the off-diagonal S x S blocks of each 2S x 2S block.
template <class T, int S, int... L> MVIT_INLINE void swap_blocks(vec<T> *rows, std::integer_sequence<int, L...>) {
    constexpr int W = lanes<T>;
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
        if (!(i & S)) {
            const vec<T> a = rows[i], b = rows[i + S];
            rows[i] = shuffle<T, (L & S ? W + L - S : L)...>(a, b);
            rows[i + S] = shuffle<T, (L & S ? W + L : L + S)...>(a, b);
        }
    if constexpr (2 * S < W)
        swap_blocks<T, 2 * S>(rows, std::make_integer_sequence<int, W>{});
}
} // namespace detail

// rows[i][j] <-> rows[j][i]
template <class T> MVIT_INLINE void transpose(vec<T> (&rows)[lanes<T>]) {
    detail::swap_blocks<T, 1>(rows, std::make_integer_sequence<int, lanes<T>>{});
}

// ---- exp and log ----

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2 (Cody and Waite: ln 2 in two parts makes r exact enough).
template <class T> struct ExpConstants;
template <> struct ExpConstants<float> {
    static constexpr float lowest = -87.33654f; // below, exp(x) is subnormal
    static constexpr float log2_e = 1.44269504088896341f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    static constexpr float round_to_int = 0x1.8p23f;
    static constexpr int mantissa_bits = 23, bias = 127;
    // Cephes expf: exp(r) = 1 + r + r^2 p(r), highest power first; about 1 ulp.
    static constexpr float p[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                  4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
};
template <> struct ExpConstants<double> {
    static constexpr double lowest = -708.39641853226408;
    static constexpr double log2_e = 1.4426950408889634, ln2_high = 6.93147180369123816490e-01,
                            ln2_low = 1.90821492927058770002e-10;
    static constexpr double round_to_int = 0x1.8p52;
    static constexpr int mantissa_bits = 52, bias = 1023;
    // Taylor's series to r^13: the rest is below 5e-18.
    static constexpr double p[] = {1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320,
                                   1. / 5040,       1. / 720,       1. / 120,      1. / 24,      1. / 6,      1. / 2};
};

// For x <= 0, all a softmax needs. NaN stays NaN; a result that would be subnormal is 0, so exp(-inf) is.
template <class T> MVIT_INLINE vec<T> exp_nonpositive(vec<T> x) {
    using C = ExpConstants<T>;
    const vec<T> lowest = broadcast<T>(C::lowest);
    const ivec<T> vanishes = x < lowest; // false for NaN
    const vec<T> in = vanishes ? lowest : x;
    const vec<T> shifted = in * C::log2_e + C::round_to_int; // the integer n, in the lowest bits of the mantissa
    const vec<T> n = shifted - C::round_to_int;
    const vec<T> r = in - n * C::ln2_high - n * C::ln2_low;
    vec<T> p = broadcast<T>(C::p[0]);
#pragma GCC unroll 16
    for (size_t i = 1; i < sizeof(C::p) / sizeof(T); ++i)
        p = p * r + C::p[i];
    p = p * (r * r) + r + T(1);
    const uvec<T> two_to_n = (bits_as<uvec<T>>(shifted) + C::bias) << C::mantissa_bits; // any number where x is NaN
    p *= bits_as<vec<T>>(two_to_n);
    return vanishes ? vec<T>{} : p;
}

MVIT_INLINE float exp(float x) { return __builtin_expf(x); }
MVIT_INLINE double exp(double x) { return __builtin_exp(x); }
MVIT_INLINE float log(float x) { return __builtin_logf(x); }
MVIT_INLINE double log(double x) { return __builtin_log(x); }
MVIT_INLINE float sqrt(float x) { return __builtin_sqrtf(x); }
MVIT_INLINE double sqrt(double x) { return __builtin_sqrt(x); }

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
