// What the CUDA kernels take, whatever the GPU; mvit_kernels/backends/cuda.py says the same to the user.
#pragma once

#include "common/attention_backward_tiles.h"
#include "common/pool_backward_tiles.h"
#include "common/pooled_query.h"

#include <initializer_list>

namespace mvit {

// The shared memory a block may have on every architecture from sm_80 on: that of sm_86, sm_89 and sm_120.
constexpr int64_t kLeastSharedBytes = 99 << 10;

constexpr int64_t kMaxHeadDim = 128;    // of attention, and of a pooling with a norm
constexpr int64_t kHeadDimMultiple = 8; // 16 bytes of the narrow formats

static_assert(kPoolChannels == kMaxHeadDim && attention_dim(kMaxHeadDim) && !attention_dim(kMaxHeadDim + 1),
              "the largest compiled head dim");

// Taps of a pooling's window. Those of a convolution are in shared memory, that of a maximum is named by 16 bits.
static constexpr int64_t max_pool_taps(PoolMode mode) { return mode == PoolMode::conv ? 176 : 65536; }

static constexpr bool taps_fit() {
    PoolBranch b = {};
    b.kernel = {1, 1, max_pool_taps(PoolMode::conv)};
    return pool_output_strip_bytes(b) <= kLeastSharedBytes;
}
static_assert(taps_fit(), "pool_output_strip_bytes");

// The largest tile of a pooling: one line of outputs, whose windows do not share inputs.
static constexpr bool tiles_fit() {
    PoolProblem p = {};
    p.batch = p.heads = 1;
    p.head_dim = kPoolChannels;
    PoolBranch b = {};
    b.kernel = {3, 3, 3}, b.stride = {1, 3, 3}, b.out_grid = {8, 14, 14};
    return pool_output_tile_bytes(pool_tiling(p, b)) <= kLeastSharedBytes;
}
static_assert(tiles_fit(), "pool_output_tile_bytes");

// Entries of a row of relative position, which stand beside queries, keys and values in shared memory.
static constexpr int64_t max_rel_pos_row(DType dtype, int64_t head_dim) {
    return dtype != DType::f32 ? 190 : head_dim <= 96 ? 150 : 95;
}
static constexpr int64_t max_rel_pos_row_backward(DType dtype, int64_t head_dim) {
    return max_backward_rel_pos_row(dtype, head_dim, kLeastSharedBytes);
}

static constexpr int64_t shared_bytes_of_row(DType dtype, bool tf32, int64_t head_dim, int64_t entries) {
    AttentionProblem p = {};
    p.dtype = dtype;
    p.tf32 = tf32;
    p.head_dim = head_dim;
    p.rel_pos = &kLeastSharedBytes; // anything but null
    p.grid_k = {1, 1, entries - 2};
    return attention_shared_bytes(p);
}

static constexpr bool rows_fit(DType dtype, bool tf32) {
    for (int dim : kAttentionDims) {
        const int64_t most = max_rel_pos_row(dtype, dim);
        if (most > kMaxRelPosEntries)
            return false;
        for (int64_t entries = 3; entries <= most; ++entries)
            if (shared_bytes_of_row(dtype, tf32, dim, entries) > kLeastSharedBytes)
                return false;
    }
    return true;
}
static_assert(rows_fit(DType::f16, false) && rows_fit(DType::f32, false) && rows_fit(DType::f32, true),
              "attention_shared_bytes");

static constexpr bool queries_fit() {
    for (int dim : kAttentionDims)
        for (int64_t entries : {int64_t(0), kMaxProductEntries}) {
            PooledQueryProblem p = {};
            p.attention.dtype = DType::f16;
            p.attention.head_dim = dim;
            p.attention.grid_k = {1, 1, entries - 2};
            p.table_w.data = entries ? &kLeastSharedBytes : nullptr; // anything but null
            p.pool.branch[0].kernel = {1, 1, kMaxQueryTaps};
            if (pooled_query_shared_bytes(pooled_query_forward(p)) > kLeastSharedBytes)
                return false;
        }
    return true;
}
static_assert(queries_fit(), "pooled_query_shared_bytes");

} // namespace mvit
