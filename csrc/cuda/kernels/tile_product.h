// Products of a warp with swizzled tiles in shared memory.
#pragma once

#include "cuda/primitives/mma.h"

namespace mvit::cuda {

// A number as a type, for `if constexpr` and array sizes on an argument.
template <int kValue> struct Number {
    static constexpr int value = kValue;
};

// Where a lane's row of an ldmatrix_x4 lies in a tile: chunk 2 * d + half of `row`, for each d. The swizzle acts inside
// a group of chunks, so a few addresses and constants are all that is needed.
template <int kDim> struct LaneRow {
    using Rows = Tile<kDim>;
    static constexpr int kPairs = Rows::kGroup / 2;
    Shared at[kPairs];

    MVIT_DEVICE LaneRow(int row, int half) {
        MVIT_UNROLL
        for (int i = 0; i < kPairs; ++i)
            at[i] = Rows::offset(row, 2 * i + half);
    }
    // Of the row whose chunk `half` lies at `first`, in a tile at a multiple of 128 bytes: one register and a few
    // instructions where addresses would have to be kept.
    explicit MVIT_DEVICE LaneRow(Shared first) {
        MVIT_UNROLL
        for (int i = 0; i < kPairs; ++i)
            at[i] = first ^ Shared(32 * i);
    }
    // The chunks are those of the tile's row `row` + 16 * step.
    MVIT_DEVICE Shared operator()(int d, int step) const {
        return at[d % kPairs] + Shared(d / kPairs * Rows::kGroup * 16 + 16 * step * Rows::kRowBytes);
    }
};

// As the A operand, 16 rows of a tile; and as the B operand whose depth is the tile's rows.
template <int kDim> MVIT_DEVICE LaneRow<kDim> rows_by_depth(int lane) { return {lane % 16, lane / 16}; }
// As the B operand whose depth is the tile's columns.
template <int kDim> MVIT_DEVICE LaneRow<kDim> rows_by_column(int lane) {
    return {lane / 16 * 8 + lane % 8, lane / 8 % 2};
}

// d (16 x 16 kSteps) += a (16 x kDim) b^T, b being 16 kSteps rows of a tile.
template <class T, int kDim, int kSteps>
MVIT_DEVICE void multiply_transposed(float (&d)[2 * kSteps][4], const uint32_t (&a)[kDim / 16][4], Shared tile,
                                     const LaneRow<kDim> &row) {
    MVIT_UNROLL
    for (int i = 0; i < kDim / 16; ++i) {
        MVIT_UNROLL
        for (int n = 0; n < kSteps; ++n) {
            uint32_t b[4];
            ldmatrix_x4(b, tile + row(i, n));
            mma_m16n8k16<T>(d[2 * n], a[i], b[0], b[1]);
            mma_m16n8k16<T>(d[2 * n + 1], a[i], b[2], b[3]);
        }
    }
}

// d (16 x kDim) += a (16 x 16 kSteps) b, b being 16 kSteps rows of a tile.
template <class T, int kDim, int kSteps>
MVIT_DEVICE void multiply(float (&d)[kDim / 8][4], const uint32_t (&a)[kSteps][4], Shared tile,
                          const LaneRow<kDim> &row) {
    MVIT_UNROLL
    for (int n = 0; n < kSteps; ++n) {
        MVIT_UNROLL
        for (int i = 0; i < kDim / 16; ++i) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, tile + row(i, n));
            mma_m16n8k16<T>(d[2 * i], a[n], b[0], b[1]);
            mma_m16n8k16<T>(d[2 * i + 1], a[n], b[2], b[3]);
        }
    }
}

// Accumulators as the A operand of the next product: a pair of accumulators, packed, is a pair of A.
template <class T, int kSteps>
MVIT_DEVICE void pack_operand(uint32_t (&a)[kSteps][4], const float (&d)[2 * kSteps][4]) {
    MVIT_UNROLL
    for (int n = 0; n < kSteps; ++n) {
        MVIT_UNROLL
        for (int i = 0; i < 4; ++i)
            a[n][i] = pack<T>(d[2 * n + i / 2][i % 2 * 2], d[2 * n + i / 2][i % 2 * 2 + 1]);
    }
}

} // namespace mvit::cuda
