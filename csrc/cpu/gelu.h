// Exact GELU: x * Phi(x), Phi the normal distribution function.
#pragma once

#include "cpu/simd.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

// Phi(-a) = exp(-q(a)) for a >= 0, q a polynomial with q(0) = ln 2, fitted so that a * Phi(-a) is off by at most 2.5e-9
// on [0, 8]: a small part of what rounding in float32 costs. From 8 on Phi(-a) is below 1e-15. Lowest power first.
constexpr float kGeluCoefficients[] = {0x1.62e430p-1f,  0x1.98845cp-1f,  0x1.45f21ep-2f,  0x1.29cc48p-5f,
                                       -0x1.3bd654p-8f, 0x1.946e70p-18f, 0x1.882f46p-13f, -0x1.96c5f6p-15f,
                                       0x1.92c522p-18f, -0x1.4cf4e2p-22f};

MVIT_INLINE vec<float> gelu(vec<float> x) {
    constexpr int terms = sizeof(kGeluCoefficients) / sizeof(float);
    const vec<float> a = x < 0 ? -x : x;
    vec<float> q = broadcast<float>(kGeluCoefficients[terms - 1]);
#pragma GCC unroll 16
    for (int i = terms - 2; i >= 0; --i)
        q = q * a + kGeluCoefficients[i];
    const vec<float> zero = {};
    const vec<float> tail = a < 8 ? exp_nonpositive<float>(-q) : zero;
    return x * (x > 0 ? 1 - tail : tail); // NaN for -infinity, as 0.5 x (1 + erf(x / sqrt(2))) is
}

MVIT_INLINE vec<double> gelu(vec<double> x) {
#pragma GCC unroll 8
    for (int i = 0; i < lanes<double>; ++i)
        x[i] = 0.5 * x[i] * (1 + __builtin_erf(x[i] * 0.70710678118654752440));
    return x;
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
