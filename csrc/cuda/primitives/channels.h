// Eight neighbouring channels of a token, in memory in one of three formats, in registers as float32.
#pragma once

#include "common/backward.h"
#include "cuda/primitives/memory.h"
#include "cuda/primitives/numbers.h"

namespace mvit::cuda {

struct f32 {};

template <class T> struct Channels {
    static constexpr int kBytes = 2; // of one channel
    static MVIT_DEVICE void load(const void *from, float (&value)[8]) {
        const Vector16 v = load_global<Vector16>(from);
        MVIT_UNROLL
        for (int i = 0; i < 4; ++i)
            unpack<T>(v.word[i], value[2 * i], value[2 * i + 1]);
    }
    static MVIT_DEVICE void store(void *to, const float (&value)[8]) {
        Vector16 v;
        MVIT_UNROLL
        for (int i = 0; i < 4; ++i)
            v.word[i] = pack<T>(value[2 * i], value[2 * i + 1]);
        store_global(to, v);
    }
};

struct alignas(8) Float2 {
    float value[2];
};
struct alignas(16) Float4 {
    float value[4];
};

template <> struct Channels<f32> {
    static constexpr int kBytes = 4;
    static MVIT_DEVICE void load(const void *from, float (&value)[8]) {
        const Float4 low = load_global<Float4>(from), high = load_global<Float4>(static_cast<const Float4 *>(from) + 1);
        MVIT_UNROLL
        for (int i = 0; i < 4; ++i)
            value[i] = low.value[i], value[4 + i] = high.value[i];
    }
    static MVIT_DEVICE void store(void *to, const float (&value)[8]) {
        Float4 low, high;
        MVIT_UNROLL
        for (int i = 0; i < 4; ++i)
            low.value[i] = value[i], high.value[i] = value[4 + i];
        store_global(to, low);
        store_global(static_cast<Float4 *>(to) + 1, high);
    }
};

// Entry i of a parameter in a format of its own.
MVIT_DEVICE float load_parameter(const Parameter &parameter, int64_t i) {
    if (parameter.dtype == DType::f32)
        return load_global<float>(static_cast<const float *>(parameter.data) + i);
    const uint32_t bits = load_global<uint16_t>(static_cast<const uint16_t *>(parameter.data) + i);
    float value, rest;
    if (parameter.dtype == DType::bf16)
        unpack<bf16>(bits, value, rest);
    else
        unpack<f16>(bits, value, rest);
    return value;
}

// Entries i to i + 7, 16 bytes at a time; i is a multiple of 8.
MVIT_DEVICE void load_parameters(const Parameter &parameter, int64_t i, float (&value)[8]) {
    if (parameter.dtype == DType::f32)
        Channels<f32>::load(static_cast<const float *>(parameter.data) + i, value);
    else if (parameter.dtype == DType::bf16)
        Channels<bf16>::load(static_cast<const uint16_t *>(parameter.data) + i, value);
    else
        Channels<f16>::load(static_cast<const uint16_t *>(parameter.data) + i, value);
}

MVIT_DEVICE void store_parameter(const ParameterGradient &parameter, int64_t i, float value) {
    if (parameter.dtype == DType::f32)
        return store_global(static_cast<float *>(parameter.data) + i, value);
    const uint32_t bits = parameter.dtype == DType::bf16 ? pack<bf16>(value, 0) : pack<f16>(value, 0);
    store_global(static_cast<uint16_t *>(parameter.data) + i, uint16_t(bits));
}

} // namespace mvit::cuda
