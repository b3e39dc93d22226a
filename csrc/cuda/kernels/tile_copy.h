// From rows in global memory to a swizzled tile in shared memory, and back.
#pragma once

#include "common/attention_tiles.h"
#include "cuda/primitives/memory.h"
#include "cuda/primitives/sync.h"

namespace mvit::cuda {

// Copies a tile of rows of 16-bit elements into swizzled shared memory. A thread has one chunk in each group of chunks
// and one row in each pass, so that its addresses differ by constants.
template <int kRows, int kDim, int kThreads> struct TileCopy {
    using Rows = Tile<kDim>;
    static constexpr int kStep = kThreads / Rows::kGroup; // rows of a pass
    static constexpr int kGroups = Rows::kChunks / Rows::kGroup;
    static constexpr int kPasses = kRows < kStep ? 1 : kRows / kStep; // of few rows, some threads have none
    static_assert(kRows % 8 == 0 && (kRows < kStep || kRows % kStep == 0) && kStep % 8 == 0,
                  "whole passes over which the swizzle repeats");

    const char *from; // of this thread, in the tile
    int64_t step;     // bytes from pass to pass
    int row, chunk;
    Shared to;

    MVIT_DEVICE TileCopy(const void *base, int64_t stride)
        : row(thread_index() / Rows::kGroup), chunk(thread_index() % Rows::kGroup) {
        from = static_cast<const char *>(base) + 2 * (row * stride + chunk * 8);
        step = 2 * (kRows < kStep ? kRows : kStep) * stride;
        to = Rows::offset(row, chunk);
    }

    // Rows from `count` on and chunks past `dim` become zeros. Goes on to the next kRows rows.
    MVIT_DEVICE void start(Shared tile, int count, int dim) {
        MVIT_UNROLL
        for (int pass = 0; pass < kPasses; ++pass) {
            MVIT_UNROLL
            for (int group = 0; group < kGroups && has_rows(); ++group)
                cp_async_16(tile + to + Shared(pass * kStep * Rows::kRowBytes + group * Rows::kGroup * 16),
                            from + group * Rows::kGroup * 16,
                            row + pass * kStep < count && (chunk + group * Rows::kGroup) * 8 < dim);
            from += step;
        }
    }

    // The same where all rows are there.
    MVIT_DEVICE void start_whole(Shared tile, int dim, bool valid = true) {
        MVIT_UNROLL
        for (int pass = 0; pass < kPasses; ++pass) {
            MVIT_UNROLL
            for (int group = 0; group < kGroups; ++group) {
                const bool always = (group + 1) * Rows::kGroup * 8 <= attention_least_dim(kDim);
                cp_async_16(tile + to + Shared(pass * kStep * Rows::kRowBytes + group * Rows::kGroup * 16),
                            from + group * Rows::kGroup * 16,
                            valid && (always || (chunk + group * Rows::kGroup) * 8 < dim));
            }
            from += step;
        }
    }

    // Replaces each 16 bytes that this thread has copied into a tile by f of them.
    template <class F> MVIT_DEVICE void apply(Shared tile, const F &f) const {
        MVIT_UNROLL
        for (int pass = 0; pass < kPasses; ++pass) {
            MVIT_UNROLL
            for (int group = 0; group < kGroups && has_rows(); ++group) {
                const Shared at = tile + to + Shared(pass * kStep * Rows::kRowBytes + group * Rows::kGroup * 16);
                store_shared(at, f(load_shared<Vector16>(at)));
            }
        }
    }

    // Back by `tiles` tiles.
    MVIT_DEVICE void rewind(int64_t tiles) { from -= tiles * kPasses * step; }

    MVIT_DEVICE bool has_rows() const { return kRows >= kStep || row < kRows; }
};

// The 16 rows of each warp, of which `count` in the whole tile are there, to contiguous rows of `dim` 16-bit elements.
template <int kDim> MVIT_DEVICE void store_rows(void *to, Shared tile, int count, int dim) {
    using Rows = Tile<kDim>;
    const int lane = lane_index(), first_chunk = lane % Rows::kGroup;
    MVIT_UNROLL
    for (int r = 0; r < 16; r += kWarp / Rows::kGroup) {
        const int row = 16 * warp_index() + r + lane / Rows::kGroup;
        MVIT_UNROLL
        for (int chunk = first_chunk; chunk < Rows::kChunks; chunk += Rows::kGroup)
            if (row < count && chunk * 8 < dim)
                store_global(static_cast<char *>(to) + 2 * (int64_t(row) * dim + chunk * 8),
                             load_shared<Vector16>(tile + Rows::offset(row, chunk)));
    }
}

} // namespace mvit::cuda
