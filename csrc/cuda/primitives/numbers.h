// 16-bit floating point, and the special functions.
//
// Two 16-bit numbers travel in one 32-bit register, the one with the lower index in the lower half.
#pragma once

#include "cuda/primitives/platform.h"

#ifndef __CUDACC__
#include "emulation/numbers.h"

#include <cmath>
#endif

namespace mvit::cuda {

// Names of the formats; never held as values.
struct f16 {};
struct bf16 {};

template <class T> struct IsBf16 {
    static constexpr bool value = false;
};
template <> struct IsBf16<bf16> {
    static constexpr bool value = true;
};

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// Round to nearest even (cvt.rn.f16x2.f32, cvt.rn.bf16x2.f32).
template <class T> MVIT_DEVICE uint32_t pack(float low, float high) {
#ifdef __CUDACC__
    uint32_t packed;
    if constexpr (IsBf16<T>::value)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#else
    using namespace emulation;
    return IsBf16<T>::value ? bf16_bits(low) | uint32_t(bf16_bits(high)) << 16
                            : f16_bits(low) | uint32_t(f16_bits(high)) << 16;
#endif
}

// Exact.
template <class T> MVIT_DEVICE void unpack(uint32_t packed, float &low, float &high) {
#ifdef __CUDACC__
    if constexpr (IsBf16<T>::value) {
        low = __uint_as_float(packed << 16);
        high = __uint_as_float(packed & 0xffff0000u);
    } else {
        asm("{.reg .f16 l, h;\n mov.b32 {l, h}, %2;\n cvt.f32.f16 %0, l;\n cvt.f32.f16 %1, h;}"
            : "=f"(low), "=f"(high)
            : "r"(packed));
    }
#else
    using namespace emulation;
    low = IsBf16<T>::value ? bf16_value(uint16_t(packed)) : f16_value(uint16_t(packed));
    high = IsBf16<T>::value ? bf16_value(uint16_t(packed >> 16)) : f16_value(uint16_t(packed >> 16));
#endif
}

// To the 10 bits of mantissa that a TF32 product reads, nearest, halves away from zero; the other 13 bits are zero
// (cvt.rna.tf32.f32).
MVIT_DEVICE uint32_t tf32(float x) {
#ifdef __CUDACC__
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return bits;
#else
    return emulation::tf32_bits(x);
#endif
}
// The same of the bits of a float32.
MVIT_DEVICE uint32_t tf32(uint32_t x) {
#ifdef __CUDACC__
    return tf32(__uint_as_float(x));
#else
    return emulation::tf32_bits(emulation::float_of(x));
#endif
}

// ex2.approx.ftz.f32: 2 ulp, results below 2^-126 are 0. exp2(-inf) = 0, exp2(NaN) = NaN.
MVIT_DEVICE float fast_exp2(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    const float y = std::exp2(x);
    return y < 0x1p-126f ? 0 : y;
#endif
}

// lg2.approx.f32: absolute error below 2^-22 near 1, 2 ulp elsewhere. log2(0) = -inf.
MVIT_DEVICE float fast_log2(float x) {
#ifdef __CUDACC__
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return std::log2(x);
#endif
}

// a * b + c, rounded once (fma.rn.f32).
MVIT_DEVICE float multiply_add(float a, float b, float c) {
#ifdef __CUDACC__
    return __fmaf_rn(a, b, c);
#else
    return std::fma(a, b, c);
#endif
}

// 1 / sqrt(x), both rounded to nearest.
MVIT_DEVICE float inverse_square_root(float x) {
#ifdef __CUDACC__
    return 1.0f / sqrtf(x);
#else
    return 1.0f / std::sqrt(x);
#endif
}

// The larger; the other one where one is NaN (max.f32).
MVIT_DEVICE float maximum(float a, float b) {
#ifdef __CUDACC__
    return fmaxf(a, b);
#else
    return std::fmax(a, b);
#endif
}

MVIT_DEVICE float negative_infinity() {
#ifdef __CUDACC__
    return __int_as_float(int(0xff800000u));
#else
    return -INFINITY;
#endif
}

} // namespace mvit::cuda
