// 16-bit floating point as bits, rounded to nearest even as the hardware does.
#pragma once

#include <cstdint>
#include <cstring>

namespace mvit::emulation {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// NaN becomes 0x7fff, as cvt.rn.bf16x2.f32 gives it.
inline uint16_t bf16_bits(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return 0x7fff;
    return uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
inline float bf16_value(uint16_t bits) { return float_of(uint32_t(bits) << 16); }

// NaN becomes 0x7fffffff, which no other number rounds to.
inline uint32_t tf32_bits(float value) {
    const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return 0x7fffffff;
    return magnitude == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u;
}

// In integers, so that it does not depend on the host's half-precision instructions.
inline uint16_t f16_bits(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return 0x7fff;
    if (magnitude >= 0x477ff000u) // 65520 and more round to infinity
        return uint16_t(sign | 0x7c00u);
    if (magnitude < 0x38800000u) { // below 2^-14: a subnormal, a multiple of 2^-24
        const float scaled = float_of(magnitude) * 0x1p24f;
        uint32_t whole = uint32_t(scaled);
        const float rest = scaled - float(whole);
        whole += rest > 0.5f || (rest == 0.5f && (whole & 1));
        return uint16_t(sign | whole);
    }
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
    return uint16_t(sign | (rounded - 0x38000000u) >> 13);
}
inline float f16_value(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ffu;
    if (exponent == 0) {
        const float value = float(fraction) * 0x1p-24f;
        return sign ? -value : value;
    }
    if (exponent == 31)
        return float_of(sign | 0x7f800000u | fraction << 13);
    return float_of(sign | ((exponent + 112) << 23) | fraction << 13);
}

} // namespace mvit::emulation
