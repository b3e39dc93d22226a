// Exact GELU: x * Phi(x), Phi the normal distribution function.
#pragma once

#include "cpu/simd.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

// Phi(-a) = 2^-q(a) for a >= 0, q a polynomial with q(0) = 1, fitted so that a * Phi(-a) is off by at most 1.6e-9
// on [0, 8]: a small part of what rounding in float32 costs. From 8 on Phi(-a) is below 1e-15. Highest power first.
constexpr float kGelu[] = {-0x1.a6aef8p-22f, 0x1.0632d8p-17f, -0x1.0e851ap-14f, 0x1.072b00p-12f, 0x1.82ec64p-15f,
                           -0x1.ca80a6p-8f,  0x1.addccep-5f,  0x1.d63b24p-2f,   0x1.26aedap+0f,  1};
// The same for results of 16 bits: off by at most 8.3e-8, what eager PyTorch's 1 + erf loses near -1.
constexpr float kRoughGelu[] = {
    -0x1.f60b9ap-16f, 0x1.83e84ap-11f, -0x1.0567d2p-7f, 0x1.b42092p-5f, 0x1.d5edfep-2f, 0x1.26b194p+0f, 1};

template <bool kRough> MVIT_INLINE vec<float> gelu(vec<float> x) {
    const vec<float> a = x < 0 ? -x : x, zero = {};
    const vec<float> q = kRough ? polynomial<float>(kRoughGelu, a) : polynomial<float>(kGelu, a);
    const vec<float> tail = a < 8 ? exp2_nonpositive<kRough>(-q) : zero;
    return x * (x > 0 ? 1 - tail : tail); // NaN for -infinity, as 0.5 x (1 + erf(x / sqrt(2))) is
}

template <bool> MVIT_INLINE vec<double> gelu(vec<double> x) {
#pragma GCC unroll 8
    for (int i = 0; i < lanes<double>; ++i)
        x[i] = 0.5 * x[i] * (1 + __builtin_erf(x[i] * 0.70710678118654752440));
    return x;
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
