// How the CUDA pooling_attention kernel divides a problem. Pure functions of shapes, so a host can test them.
#pragma once

#include "common/grid.h"

namespace mvit {

// The head dims the kernel is compiled for; others are padded with zeros to the next of these.
constexpr int kAttentionDims[] = {48, 64, 80, 96, 128};

// 0 where the head dim is too large.
static constexpr int attention_dim(int64_t head_dim) {
    for (int dim : kAttentionDims)
        if (head_dim <= dim)
            return dim;
    return 0;
}

struct AttentionTile {
    int rows;    // queries of a block, 16 for each warp
    int keys;    // of one step
    int stages;  // key tiles in flight or in use
    int threads; // of a block
    int blocks;  // on one multiprocessor, for the register budget
};

// S and O of a warp are keys / 2 + dim / 2 registers of a thread, q another dim / 4; with 255 registers two blocks
// share a multiprocessor. At dim 128 only 48 keys leave room for the rest.
static constexpr AttentionTile attention_tile(int dim) { return {64, dim > 96 ? 48 : 64, 2, 128, 2}; }

// The bias of a key is the sum of three entries of its query's row, which ends with a zero for keys without a bias.
// They are named by three 10-bit numbers.
constexpr int64_t kMaxRelPosEntries = 1022;

static constexpr int64_t rel_pos_entries(const AttentionProblem &p) {
    return p.rel_pos ? p.grid_k.t + p.grid_k.h + p.grid_k.w : 0;
}

// Keys and values of each stage; then the rows of bias, and per stage the entries that a key's bias is made of.
static constexpr int64_t attention_shared_bytes(int dim, int64_t entries) {
    const AttentionTile tile = attention_tile(dim);
    const int64_t tiles = int64_t(tile.stages) * 2 * tile.keys * dim * 2;
    return tiles + (entries ? tile.rows * (entries + 1) * 4 + tile.stages * tile.keys * 4 : 0);
}

static constexpr int64_t attention_blocks(const AttentionProblem &p) {
    return p.batch * p.heads * ceil_div(p.queries, attention_tile(attention_dim(p.head_dim)).rows);
}

} // namespace mvit
