// How the CUDA pool3d_norm kernel divides a problem.
#pragma once

#include "common/grid.h"

namespace mvit {

constexpr int kPoolThreads = 128;
constexpr int kPoolLanes = 16;                         // threads of one token, 8 channels each
constexpr int kPoolChannels = 8 * kPoolLanes;          // of one block; the whole head dim where there is a norm
constexpr int kPoolGroups = kPoolThreads / kPoolLanes; // strips at a time
constexpr int kPoolStrip = 4;                          // outputs along w that one thread makes together
constexpr int kPoolPasses = 4;                         // strips one after the other, for one staging of the weights

static constexpr int64_t pool_strips_of_row(const PoolBranch &b) { return ceil_div(b.out_grid.w, kPoolStrip); }

// Strips of one (batch, head): the grid's, and one for the cls token.
static constexpr int64_t pool_strips(const PoolProblem &p, const PoolBranch &b) {
    return b.out_grid.t * b.out_grid.h * pool_strips_of_row(b) + (p.has_cls ? 1 : 0);
}

static constexpr int64_t pool_tokens(const PoolProblem &p, Size3 grid) { return (p.has_cls ? 1 : 0) + volume(grid); }

static constexpr int64_t pool_slices(const PoolProblem &p) { return ceil_div(p.head_dim, kPoolChannels); }

static constexpr int64_t pool_blocks(const PoolProblem &p, const PoolBranch &b) {
    return p.batch * p.heads * pool_slices(p) * ceil_div(pool_strips(p, b), kPoolGroups * kPoolPasses);
}

static constexpr int64_t pool_blocks(const PoolProblem &p) {
    int64_t blocks = 0;
    for (int i = 0; i < p.branches; ++i)
        blocks += pool_blocks(p, p.branch[i]);
    return blocks;
}

// The taps of a block's channels and the two vectors of the norm, in float32.
static constexpr int64_t pool_shared_bytes(const PoolProblem &p) {
    int64_t rows = 0;
    for (int i = 0; i < p.branches; ++i)
        rows = max(rows, p.branch[i].mode == PoolMode::conv ? volume(p.branch[i].kernel) : 0);
    return (rows + 2) * kPoolChannels * 4;
}

} // namespace mvit
