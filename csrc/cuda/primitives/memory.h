// Global and shared memory: vector loads and stores, and the swizzle that keeps ldmatrix free of bank conflicts.
#pragma once

#include "cuda/primitives/platform.h"

namespace mvit::cuda {

// A place in the block's dynamic shared memory, in bytes from its start.
using Shared = uint32_t;

struct alignas(16) Vector16 {
    uint32_t word[4];
};
struct alignas(8) Vector8 {
    uint32_t word[2];
};

#ifdef __CUDACC__
template <class T> MVIT_DEVICE T load_shared(Shared at) { return *reinterpret_cast<const T *>(dynamic_shared + at); }
template <class T> MVIT_DEVICE void store_shared(Shared at, T value) {
    *reinterpret_cast<T *>(dynamic_shared + at) = value;
}
template <class T> MVIT_DEVICE T load_global(const void *at) { return *static_cast<const T *>(at); }
template <class T> MVIT_DEVICE void store_global(void *at, T value) { *static_cast<T *>(at) = value; }
MVIT_DEVICE uint32_t shared_address(Shared at) { return uint32_t(__cvta_generic_to_shared(dynamic_shared)) + at; }
#else
template <class T> T load_shared(Shared at) {
    T value;
    emulation::read_shared(at, &value, sizeof(T));
    return value;
}
template <class T> void store_shared(Shared at, T value) { emulation::write_shared(at, &value, sizeof(T)); }
template <class T> T load_global(const void *at) {
    emulation::check_global(at, sizeof(T));
    return *static_cast<const T *>(at);
}
template <class T> void store_global(void *at, T value) {
    emulation::check_global(at, sizeof(T));
    *static_cast<T *>(at) = value;
}
#endif

// A tile of rows of kDim 16-bit elements. Rows follow each other without padding; inside a row the 16-byte chunks are
// permuted by XOR with a number that depends on the row, so that the same chunk of 8 consecutive rows, which is what
// one matrix of an ldmatrix reads, lies in 8 different groups of 4 banks.
//
// Chunk c of row r begins at bank group (r * kChunks + c) mod 8. With kGroup the largest power of two in kChunks (8 at
// most), the rows repeat every 8 / kGroup; XOR of the low bits of c tells the repetitions apart and stays inside a
// group of kGroup chunks, so it never leaves the row.
template <int kDim> struct Tile {
    static_assert(kDim % 16 == 0, "the head dim is padded to a multiple of 16");
    static constexpr int kChunks = kDim / 8;
    static constexpr int kGroup = kChunks % 8 == 0 ? 8 : kChunks % 4 == 0 ? 4 : 2;
    static constexpr int kRowBytes = 2 * kDim;

    static MVIT_DEVICE int swizzle(int row) { return row / (8 / kGroup) % kGroup; }
    static MVIT_DEVICE Shared offset(int row, int chunk) {
        return Shared(row * kRowBytes + ((chunk ^ swizzle(row)) * 16));
    }
};

} // namespace mvit::cuda
