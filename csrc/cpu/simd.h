// Vectors of the level being compiled, on the compiler's vector extensions: one source for every instruction set.
//
// vec<T> is a register of T = float or double, the two accumulation types. Tensors hold a storage type S: float,
// double, bf16 or f16; load() widens S to its accumulation type, store() rounds back (to nearest even, NaN kept).
// Arithmetic is written with operators: `acc += x * w` is one FMA where the level has it, and a scalar operand is
// broadcast.
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

// Hides where a value comes from, so that it stays in the register it is in: compilers like to reload a vector for each
// use as a memory operand, and to keep one pointer per row of a block, until the registers run out.
#if defined(__x86_64__)
#define MVIT_VECTOR_REGISTER "v"
#else
#define MVIT_VECTOR_REGISTER "w"
#endif
template <class T> MVIT_INLINE void keep_vector(vec<T> &x) { asm("" : "+" MVIT_VECTOR_REGISTER(x)); }
template <class T> MVIT_INLINE void keep_pointer(T *&p) { asm("" : "+r"(p)); }

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

// 16 bits to 32. GCC 12 makes __builtin_convertvector of two halves that meet in memory: a load that waits for two
// stores.
#if defined(__AVX512F__)
MVIT_INLINE uvec<float> zero_extend(halves x) {
    return bits_as<uvec<float>>(_mm512_maskz_cvtepu16_epi32(0xffff, bits_as<__m256i>(x)));
}
#elif defined(__AVX2__)
MVIT_INLINE uvec<float> zero_extend(halves x) {
    return bits_as<uvec<float>>(_mm256_cvtepu16_epi32(bits_as<__m128i>(x)));
}
#else
MVIT_INLINE uvec<float> zero_extend(halves x) { return __builtin_convertvector(x, uvec<float>); }
#endif

MVIT_INLINE vec<float> widen(bf16, halves x) { return bits_as<vec<float>>(zero_extend(x) << 16); }

#if defined(__AVX512BF16__)
// One instruction; subnormal numbers become zero, as they are to the products.
MVIT_INLINE halves narrow(bf16, vec<float> x) { return bits_as<halves>(_mm512_cvtneps_pbh(x)); }
#else
MVIT_INLINE halves narrow(bf16, vec<float> x) {
    const uvec<float> u = bits_as<uvec<float>>(x);
    const uvec<float> rounded = u + 0x7fff + ((u >> 16) & 1);
    const uvec<float> quiet_nan = u | 0x400000;
    return __builtin_convertvector((x == x ? rounded : quiet_nan) >> 16, halves);
}
#endif

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
MVIT_INLINE vec<float> widen(f16, halves x) { return __builtin_convertvector(bits_as<native_halves>(x), vec<float>); }
MVIT_INLINE halves narrow(f16, vec<float> x) { return bits_as<halves>(__builtin_convertvector(x, native_halves)); }
#else
// Exponent and mantissa shifted into place read as x * 2^-112; one exact product undoes that, also for subnormals.
MVIT_INLINE vec<float> widen(f16, halves x) {
    const uvec<float> u = zero_extend(x);
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
    return detail::reduce<T, lanes<T> / 2>(x,
                                           [](vec<T> a, vec<T> b) __attribute__((always_inline)) { return a + b; })[0];
}
namespace detail {
template <class T, int S, int... L> MVIT_INLINE vec<T> add_pair(vec<T> a, vec<T> b, std::integer_sequence<int, L...>) {
    return shuffle<T, (L & S ? lanes<T> + L - S : L)...>(a, b) + shuffle<T, (L & S ? lanes<T> + L : L + S)...>(a, b);
}
// Each step halves the number of rows and doubles the number of lanes summed, bit S of the lane telling the row.
template <class T, int N, int S> MVIT_INLINE vec<T> fold(vec<T> *rows) {
    const auto all = std::make_integer_sequence<int, lanes<T>>{};
    if constexpr (S == lanes<T>) {
        return rows[0];
    } else {
        if constexpr (S < N) {
#pragma GCC unroll 8
            for (int i = 0; i < N; i += 2 * S)
                rows[i] = add_pair<T, S>(rows[i], rows[i + S], all);
        } else {
            rows[0] += rotate<T, S>(rows[0], all);
        }
        return fold<T, N, 2 * S>(rows);
    }
}
} // namespace detail

// Lane i of the result is the sum of the lanes of rows[i % N]; N is a power of 2, at most the number of lanes.
template <class T, int N> MVIT_INLINE vec<T> sum_lanes_of_rows(const vec<T> (&rows)[N]) {
    static_assert(N <= lanes<T> && (N & (N - 1)) == 0);
    vec<T> sums[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i)
        sums[i] = rows[i];
    return detail::fold<T, N, 1>(sums);
}

// NaN lanes may or may not win.
template <class T> MVIT_INLINE T max_lanes(vec<T> x) {
    return detail::reduce<T, lanes<T> / 2>(x, [](vec<T> a, vec<T> b)
                                                  __attribute__((always_inline)) { return max_or_second<T>(a, b); })[0];
}

namespace detail {
// Two-operand shuffles that are one instruction, in terms of the register's 128-bit quarters: the lane of x followed by
// y that lane i of the result comes from.
template <class T> constexpr int kPerQuarter = 16 / int(sizeof(T));
template <class T> constexpr int quarter(int i) { return i / kPerQuarter<T>; }
template <class T> constexpr int in_quarter(int i) { return i % kPerQuarter<T>; }

template <class T, int High> struct Interleave { // x0 y0 x1 y1 of each quarter, or of its higher half
    static constexpr int from(int i) {
        return quarter<T>(i) * kPerQuarter<T> + in_quarter<T>(i) / 2 + High * kPerQuarter<T> / 2 + i % 2 * lanes<T>;
    }
};
template <class T, int High> struct Halves { // x0 x1 y0 y1 of each quarter, or x2 x3 y2 y3
    static constexpr int from(int i) {
        return quarter<T>(i) * kPerQuarter<T> + i % 2 + High * 2 + in_quarter<T>(i) / 2 * lanes<T>;
    }
};
template <class T, int A, int B>
struct Quarters { // quarters A B of x, then A B of y; of two quarters, A of x and A of y
    static constexpr int from(int i) {
        constexpr int half = lanes<T> / 2;
        return (i % half < kPerQuarter<T> ? A : B) * kPerQuarter<T> + in_quarter<T>(i) + i / half * lanes<T>;
    }
};
template <class T, class Pattern, int... L>
MVIT_INLINE vec<T> arrange(vec<T> x, vec<T> y, std::integer_sequence<int, L...>) {
    return shuffle<T, Pattern::from(L)...>(x, y);
}
template <class T, class Pattern> MVIT_INLINE vec<T> arrange(vec<T> x, vec<T> y) {
    return arrange<T, Pattern>(x, y, std::make_integer_sequence<int, lanes<T>>{});
}
} // namespace detail

// rows[i][j] <-> rows[j][i]: within the quarters of as many rows as a quarter has lanes, then of the quarters
// themselves.
template <class T> MVIT_INLINE void transpose(vec<T> (&rows)[lanes<T>]) {
    using namespace detail;
    constexpr int W = lanes<T>, G = kPerQuarter<T>;
#pragma GCC unroll 4
    for (int i = 0; i < W; i += G) {
        vec<T> *const r = rows + i;
        const vec<T> low = arrange<T, Interleave<T, 0>>(r[0], r[1]), high = arrange<T, Interleave<T, 1>>(r[0], r[1]);
        if constexpr (G == 2) {
            r[0] = low;
            r[1] = high;
        } else {
            const vec<T> low2 = arrange<T, Interleave<T, 0>>(r[2], r[3]),
                         high2 = arrange<T, Interleave<T, 1>>(r[2], r[3]);
            r[0] = arrange<T, Halves<T, 0>>(low, low2);
            r[1] = arrange<T, Halves<T, 1>>(low, low2);
            r[2] = arrange<T, Halves<T, 0>>(high, high2);
            r[3] = arrange<T, Halves<T, 1>>(high, high2);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < G; ++i) {
        vec<T> *const r = rows + i;
        if constexpr (W == 2 * G) {
            const vec<T> first = arrange<T, Quarters<T, 0, 0>>(r[0], r[G]);
            r[G] = arrange<T, Quarters<T, 1, 1>>(r[0], r[G]);
            r[0] = first;
        } else if constexpr (W == 4 * G) {
            const vec<T> low = arrange<T, Quarters<T, 0, 1>>(r[0], r[G]),
                         high = arrange<T, Quarters<T, 2, 3>>(r[0], r[G]);
            const vec<T> low2 = arrange<T, Quarters<T, 0, 1>>(r[2 * G], r[3 * G]),
                         high2 = arrange<T, Quarters<T, 2, 3>>(r[2 * G], r[3 * G]);
            r[0] = arrange<T, Quarters<T, 0, 2>>(low, low2);
            r[G] = arrange<T, Quarters<T, 1, 3>>(low, low2);
            r[2 * G] = arrange<T, Quarters<T, 0, 2>>(high, high2);
            r[3 * G] = arrange<T, Quarters<T, 1, 3>>(high, high2);
        }
    }
}

// ---- Powers of 2, log and sqrt ----

// Coefficients from the highest power on.
template <class T, size_t N> MVIT_INLINE vec<T> polynomial(const T (&coefficients)[N], vec<T> x) {
    vec<T> p = broadcast<T>(coefficients[0]);
#pragma GCC unroll 16
    for (size_t i = 1; i < N; ++i)
        p = p * x + coefficients[i];
    return p;
}

// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2 (Cody and Waite: ln 2 in two parts makes r exact enough).
template <class T> struct ExpConstants;
template <> struct ExpConstants<float> {
    static constexpr float lowest = -88.1f; // n = -127
    static constexpr float log2_e = 1.44269504088896341f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    static constexpr int mantissa_bits = 23;
    static constexpr float round_to_int = 0x1.8p23f + 127;
    // Cephes expf: exp(r) = 1 + r + r^2 p(r), highest power first.
    static constexpr float p[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                  4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};
};
template <> struct ExpConstants<double> {
    static constexpr double lowest = -709.1; // n = -1023
    static constexpr double log2_e = 1.4426950408889634, ln2_high = 6.93147180369123816490e-01,
                            ln2_low = 1.90821492927058770002e-10;
    static constexpr int mantissa_bits = 52;
    static constexpr double round_to_int = 0x1.8p52 + 1023;
    // Taylor's series to r^13: the rest is below 5e-18.
    static constexpr double p[] = {1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800,
                                   1. / 362880,     1. / 40320,     1. / 5040,     1. / 720,
                                   1. / 120,        1. / 24,        1. / 6,        1. / 2};
};

// 2^x for x <= 0: 2^n 2^r, n = round(x), |r| <= 1/2, a minimax polynomial for 2^r. Relative error 2^-29 and about an
// ulp of rounding; if kRough 2^-18, a five-hundredth of what rounding to bfloat16 costs, and 1 at 0 exactly. NaN stays
// NaN. Below the normal numbers the result may be 0, and that of -infinity is. Coefficients from the highest power on.
constexpr float kExp2[] = {
    0x1.41d32ep-13f, 0x1.5f456ap-10f, 0x1.3b2dbcp-7f, 0x1.c6aed4p-5f, 0x1.ebfbdap-3f, 0x1.62e430p-1f, 1};
constexpr float kRoughExp2[] = {0x1.3a02ccp-7f, 0x1.c9fc46p-5f, 0x1.ec0378p-3f, 0x1.62e12cp-1f, 1};

template <bool kRough> MVIT_INLINE vec<float> exp2_nonpositive(vec<float> x) {
    const auto power = [](vec<float> r) __attribute__((always_inline)) {
        return kRough ? polynomial<float>(kRoughExp2, r) : polynomial<float>(kExp2, r);
    };
#if defined(__AVX512F__)
    const vec<float> r = _mm512_maskz_reduce_ps(0xffff, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_maskz_scalef_ps(0xffff, power(r), x - r);
#else
    using C = ExpConstants<float>;
    x = max_or_second<float>(broadcast<float>(-127), x);
    const vec<float> shifted = x + C::round_to_int;
    return power(x - (shifted - C::round_to_int)) *
           bits_as<vec<float>>(bits_as<uvec<float>>(shifted) << C::mantissa_bits);
#endif
}

// For x <= 0, all a softmax needs; about 1 ulp, or 2^-18 and the rounding of x log2(e) if kRough. NaN stays NaN. Below
// the normal numbers the result is 0, so exp(-inf) is.
template <class T, bool kRough = false> MVIT_INLINE vec<T> exp_nonpositive(vec<T> x) {
    using C = ExpConstants<T>;
    if constexpr (kRough)
        return exp2_nonpositive<true>(x * C::log2_e);
    x = max_or_second<T>(broadcast<T>(C::lowest), x);
    // Adding so large a number leaves n + bias in the lowest bits of the mantissa: the exponent field of 2^n, 0 where n
    // is too small for a normal number.
    const vec<T> shifted = x * C::log2_e + C::round_to_int;
    const vec<T> n = shifted - C::round_to_int;
    const vec<T> r = x - n * C::ln2_high - n * C::ln2_low;
    vec<T> p = polynomial<T>(C::p, r);
    p = p * r + T(1);
    p = p * r + T(1);
    return p * bits_as<vec<T>>(bits_as<uvec<T>>(shifted) << C::mantissa_bits);
}

MVIT_INLINE float log(float x) { return __builtin_logf(x); }
MVIT_INLINE double log(double x) { return __builtin_log(x); }

MVIT_INLINE vec<float> sqrt(vec<float> x) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes<float>; ++i)
        x[i] = __builtin_sqrtf(x[i]);
    return x;
}
MVIT_INLINE vec<double> sqrt(vec<double> x) {
#pragma GCC unroll 8
    for (int i = 0; i < lanes<double>; ++i)
        x[i] = __builtin_sqrt(x[i]);
    return x;
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
