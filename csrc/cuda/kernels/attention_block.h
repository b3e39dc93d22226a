// What the pooling_attention kernels share: a block's part of the problem, the bias, and where results go.
#pragma once

#include "common/attention_tiles.h"
#include "cuda/primitives/channels.h"
#include "cuda/primitives/sync.h"

namespace mvit::cuda {

// A bool as a type, for `if constexpr` on an argument.
template <bool kValue> struct Constant {
    static constexpr bool value = kValue;
};

// The queries and keys of one block. Neighbouring blocks share keys. There are less than 2^31 blocks, so all counts of
// them are 32-bit numbers; products with strides are made in 64 bits.
struct AttentionBlock {
    int batch, head, split;
    int64_t first_query, first_key;
    int queries;  // there are, of the tile
    int64_t keys; // of this split
    int keys_of_tile;

    MVIT_DEVICE AttentionBlock(const AttentionForward &f, int rows, int keys_of_tile, int64_t index = block_index())
        : keys_of_tile(keys_of_tile) {
        const AttentionProblem &p = f.p;
        const uint32_t row_tiles = uint32_t(ceil_div(p.queries, rows)), splits = uint32_t(f.splits);
        const uint32_t heads = uint32_t(p.heads), block = uint32_t(index);
        first_query = int64_t(block % row_tiles) * rows;
        split = int(block / row_tiles % splits);
        head = int(block / row_tiles / splits % heads);
        batch = int(block / row_tiles / splits / heads);
        first_key = split * f.keys_of_split;
        queries = int(min(p.queries - first_query, rows));
        keys = min(p.keys - first_key, f.keys_of_split);
    }

    MVIT_DEVICE int64_t row(const AttentionProblem &p, int64_t r) const {
        return (batch * p.heads + head) * p.queries + first_query + r;
    }
    // Whether q is added to row r of the tile.
    MVIT_DEVICE bool has_residual(const AttentionProblem &p, int r) const {
        return p.residual == Residual::all ||
               (p.residual == Residual::no_cls && first_query + r >= (p.has_cls ? 1 : 0));
    }
};

// The factor of a product of q and k. Never 0, for -inf * 0 would be NaN. Of a negative scale the sign is moved into q,
// so that the largest score is the largest product.
MVIT_DEVICE float score_scale(const AttentionProblem &p) {
    return p.scale == 0 ? 1e-30f : float(p.scale < 0 ? -p.scale : p.scale);
}

// The bias entries of keys: three 10-bit numbers of entries in a query's row.
MVIT_DEVICE uint32_t rel_pos_of_key(const AttentionProblem &p, int64_t key) {
    const int64_t none = p.grid_k.t + p.grid_k.h + p.grid_k.w;
    if (key < (p.has_cls ? 1 : 0) || key >= p.keys)
        return uint32_t(none | none << 10 | none << 20);
    const uint32_t i = uint32_t(key - (p.has_cls ? 1 : 0)), width = uint32_t(p.grid_k.w), height = uint32_t(p.grid_k.h);
    const uint32_t t = i / width / height, h = i / width % height, w = i % width;
    return t | (uint32_t(p.grid_k.t) + h) << 10 | (uint32_t(p.grid_k.t + p.grid_k.h) + w) << 20;
}

// The bias in shared memory: a row of entries for each query, in units of a product of q and k and ending with a zero;
// and for each key of a tile where its three entries are.
struct BiasRows {
    Shared rows, keys;
    int pitch; // bytes

    MVIT_DEVICE BiasRows(const AttentionProblem &p, Shared at, int rows_of_tile) : rows(at) {
        pitch = 4 * int(p.grid_k.t + p.grid_k.h + p.grid_k.w + 1);
        keys = at + Shared(rows_of_tile * pitch);
    }

    // By all threads of the block; a barrier must follow. Rows of the cls token, and those past the end, get zeros.
    MVIT_DEVICE void load(const AttentionProblem &p, const AttentionBlock &block, int rows_of_tile, int threads) const {
        const float *const from = static_cast<const float *>(p.rel_pos) + block.batch * p.rel_pos_stride_b +
                                  block.head * p.rel_pos_stride_h + block.first_query * p.rel_pos_stride_n;
        const float unit = 1 / score_scale(p);
        const int entries = pitch / 4 - 1;
        for (int row = warp_index(); row < rows_of_tile; row += threads / kWarp) {
            const bool biased = row < block.queries && block.first_query + row >= (p.has_cls ? 1 : 0);
            for (int entry = lane_index(); entry <= entries; entry += kWarp)
                store_shared(rows + Shared(row * pitch + 4 * entry),
                             biased && entry < entries
                                 ? load_global<float>(from + row * p.rel_pos_stride_n + entry) * unit
                                 : 0.0f);
        }
    }

    // Of the keys [first, first + count); a barrier must follow, and one must have come before.
    MVIT_DEVICE void first_tile(const AttentionProblem &p, int64_t first, int count) const {
        if (thread_index() < count)
            store_shared(keys + Shared(4 * thread_index()), rel_pos_of_key(p, first + thread_index()));
    }

    MVIT_DEVICE float bias(int row, uint32_t packed) const {
        const Shared of_row = rows + Shared(row * pitch);
        return load_shared<float>(of_row + (packed & 1023) * 4) +
               (load_shared<float>(of_row + (packed >> 10 & 1023) * 4) +
                load_shared<float>(of_row + (packed >> 20) * 4));
    }
};

// Of one row: what was taken from the scores, and the sum of the exponentials. Where keys are split it is the split's
// part.
MVIT_DEVICE void store_row_sum(const AttentionForward &f, const AttentionBlock &block, int row, float score,
                               float sum) {
    const int64_t index = block.row(f.p, row);
    if (f.splits > 1) {
        float *const pair =
            f.parts + f.splits * attention_rows(f.p) * f.p.head_dim + 2 * (block.split * attention_rows(f.p) + index);
        store_global(pair, Float2{{score, sum}});
    } else {
        store_global(static_cast<float *>(f.p.lse) + index, score + fast_log2(sum) * kLn2);
    }
}

// Where the outputs of one row begin: before their division in the split's part, or in (B, Nq, H, D).
MVIT_DEVICE float *part_of_row(const AttentionForward &f, const AttentionBlock &block, int row) {
    return f.parts + (block.split * attention_rows(f.p) + block.row(f.p, row)) * f.p.head_dim;
}
MVIT_DEVICE int64_t output_row(const AttentionProblem &p, const AttentionBlock &block, int row) {
    return ((block.batch * p.queries + block.first_query + row) * p.heads + block.head) * p.head_dim;
}

} // namespace mvit::cuda
