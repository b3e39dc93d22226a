// Decomposed relative position on tensor cores. A key's row of a one-hot matrix has a 1 in its t, h and w entry:
//
//   bias (queries x keys)    = rel-pos rows (queries x entries) times the transposed one-hot matrix
//   d rel-pos rows           = dS (queries x keys) times the one-hot matrix
//
// The rows are float32. Each is split into a bfloat16 and a bfloat16 rest, two products with the same one-hot
// fragments, so the bias is exact to 16 bits, as in the forward kernel, and keeps the exponent of a float32, which
// float16 would not. dS is of the input dtype T, and the one-hot matrix with it; see kOneAsBf16. Entries go 16 at a
// time.
//
// In shared memory a row is as long as an odd number of 16 bytes, so that eight rows lie in different banks.
#pragma once

#include "common/attention_backward_tiles.h"
#include "cuda/primitives/channels.h"
#include "cuda/primitives/mma.h"

namespace mvit::cuda {

// The bits of a 1 in T, and what they are as a bfloat16: those of 1 in float16 are a power of two, so that one matrix
// serves both products, with rows that are that much larger.
template <class T> MVIT_DEVICE constexpr uint16_t one_in() { return IsBf16<T>::value ? 0x3f80 : 0x3c00; }
template <class T> constexpr float kOneAsBf16 = IsBf16<T>::value ? 1.0f : 1.0f / 128;

// An entry as its row has it. -inf, for a key that is excluded, becomes the lowest number, for 0 * inf is NaN: exp2 of
// that is 0 too.
template <class T> MVIT_DEVICE float entry_of_row(float x) {
    constexpr float kLowest = -3.3e38f * kOneAsBf16<T>;
    return (x < kLowest ? kLowest : x) * (1 / kOneAsBf16<T>); // NaN stays
}

// Two entries of a rel-pos row as two rounded ones and two rests.
template <class T> MVIT_DEVICE void split(float first, float second, uint32_t &rounded, uint32_t &rest) {
    first = entry_of_row<T>(first), second = entry_of_row<T>(second);
    rounded = pack<bf16>(first, second);
    float low, high;
    unpack<bf16>(rounded, low, high);
    rest = pack<bf16>(first - low, second - high);
}

// The place in the grid of the key that a thread follows from tile to tile: divisions only where it begins.
struct KeyPlace {
    static constexpr uint32_t kNone = 0xffffffffu;
    int index = 0, t = 0, h = 0, w = 0;     // index: without cls
    int step_t = 0, step_h = 0, step_w = 0; // of a tile

    MVIT_DEVICE void go_to(const AttentionProblem &p, int64_t key) {
        index = int(key) - (p.has_cls ? 1 : 0);
        const uint32_t i = uint32_t(index), width = uint32_t(p.grid_k.w), height = uint32_t(p.grid_k.h);
        t = int(i / width / height), h = int(i / width % height), w = int(i % width);
        step_t = int(kBackwardTile / width / height), step_h = int(kBackwardTile / width % height);
        step_w = int(kBackwardTile % width);
    }
    // Not from the cls key.
    MVIT_DEVICE void next_tile(const AttentionProblem &p) {
        index += kBackwardTile;
        w += step_w, h += step_h, t += step_t;
        if (w >= int(p.grid_k.w))
            w -= int(p.grid_k.w), ++h;
        if (h >= int(p.grid_k.h))
            h -= int(p.grid_k.h), ++t;
    }
    // Three 10-bit numbers of entries, or kNone for cls and past the end.
    MVIT_DEVICE uint32_t entries(const AttentionProblem &p) const {
        const int of_h = int(p.grid_k.t), of_w = of_h + int(p.grid_k.h);
        return index >= 0 && t < of_h ? uint32_t(t | (of_h + h) << 10 | (of_w + w) << 20) : kNone;
    }
};

// A thread's row of a one-hot matrix in shared memory. Each new key moves the ones of the last.
template <class T> struct OneHotRow {
    Shared row;
    uint32_t key; // its entries

    MVIT_DEVICE OneHotRow(Shared row, int depth) : row(row), key(KeyPlace::kNone) {
        for (int chunk = 0; chunk < depth / 8; ++chunk)
            store_shared(row + Shared(16 * chunk), Vector16{});
    }
    MVIT_DEVICE void write(uint16_t value) const {
        if (key == KeyPlace::kNone)
            return;
        MVIT_UNROLL
        for (int axis = 0; axis < 3; ++axis)
            store_shared(row + (key >> (10 * axis) & 1023) * 2, value);
    }
    MVIT_DEVICE void move_to(uint32_t entries) {
        write(0);
        key = entries;
        write(one_in<T>());
    }
};

// s (16 queries x 16 kSteps keys) += bias. `rows`: the lane's row of the A operand; `rest` behind it lie the rests.
// `keys`: the lane's row of the B operand whose depth is the one-hot matrix's columns.
template <int kSteps>
MVIT_DEVICE void add_bias(float (&s)[2 * kSteps][4], Shared rows, Shared rest, Shared keys, Shared key_row, int depth) {
    MVIT_NO_UNROLL
    for (int entry = 0; entry < depth; entry += 16, rows += 32, keys += 32) {
        uint32_t rounded[4], rests[4];
        ldmatrix_x4(rounded, rows);
        ldmatrix_x4(rests, rows + rest);
        MVIT_UNROLL
        for (int n = 0; n < kSteps; ++n) {
            uint32_t b[4];
            ldmatrix_x4(b, keys + Shared(16 * n) * key_row);
            mma_m16n8k16<bf16>(s[2 * n], rounded, b[0], b[1]);
            mma_m16n8k16<bf16>(s[2 * n + 1], rounded, b[2], b[3]);
            mma_m16n8k16<bf16>(s[2 * n], rests, b[0], b[1]);
            mma_m16n8k16<bf16>(s[2 * n + 1], rests, b[2], b[3]);
        }
    }
}

// s (16 keys x 16 kSteps queries) += bias. `keys`: the lane's row of the A operand; `rows`: of the B operand.
template <int kSteps>
MVIT_DEVICE void add_bias_of_keys(float (&s)[2 * kSteps][4], Shared keys, Shared rows, Shared rest, Shared bias_row,
                                  int depth) {
    MVIT_NO_UNROLL
    for (int entry = 0; entry < depth; entry += 16, rows += 32, keys += 32) {
        uint32_t ones[4];
        ldmatrix_x4(ones, keys);
        MVIT_UNROLL
        for (int n = 0; n < kSteps; ++n) {
            uint32_t rounded[4], rests[4];
            ldmatrix_x4(rounded, rows + Shared(16 * n) * bias_row);
            ldmatrix_x4(rests, rows + rest + Shared(16 * n) * bias_row);
            mma_m16n8k16<bf16>(s[2 * n], ones, rounded[0], rounded[1]);
            mma_m16n8k16<bf16>(s[2 * n + 1], ones, rounded[2], rounded[3]);
            mma_m16n8k16<bf16>(s[2 * n], ones, rests[0], rests[1]);
            mma_m16n8k16<bf16>(s[2 * n + 1], ones, rests[2], rests[3]);
        }
    }
}

// sums (16 queries x entries) += ds (16 queries x 16 kSteps keys) times the one-hot matrix. `sums`: the lane's
// accumulators in shared memory, 16 bytes for every 8 entries, `kSumStep` apart. `keys`: the lane's row of the B
// operand whose depth is the keys.
constexpr Shared kSumStep = kWarp * 16;
template <class T, int kSteps>
MVIT_DEVICE void add_row_sums(Shared sums, const uint32_t (&ds)[kSteps][4], Shared keys, Shared key_row, int depth) {
    MVIT_NO_UNROLL
    for (int entry = 0; entry < depth; entry += 16, keys += 32, sums += 2 * kSumStep) {
        Float4 first = load_shared<Float4>(sums), second = load_shared<Float4>(sums + kSumStep);
        MVIT_UNROLL
        for (int n = 0; n < kSteps; ++n) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, keys + Shared(16 * n) * key_row);
            mma_m16n8k16<T>(first.value, ds[n], b[0], b[1]);
            mma_m16n8k16<T>(second.value, ds[n], b[2], b[3]);
        }
        store_shared(sums, first);
        store_shared(sums + kSumStep, second);
    }
}

} // namespace mvit::cuda
