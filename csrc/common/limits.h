// What the CUDA kernels take, whatever the GPU; mvit_kernels/backends/cuda.py says the same to the user.
#pragma once

#include "common/attention_backward_tiles.h"
#include "common/pool_backward_tiles.h"

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
    PoolProblem p = {};
    p.branches = 1;
    p.branch[0].kernel = {1, 1, max_pool_taps(PoolMode::conv)};
    return pool_backward_shared_bytes(p) <= kLeastSharedBytes;
}
static_assert(taps_fit(), "pool_backward_shared_bytes");

// Entries of a row of relative position, which stand beside queries, keys and values in shared memory.
static constexpr int64_t max_rel_pos_row(DType dtype, int64_t head_dim) {
    return dtype != DType::f32 ? 190 : head_dim <= 96 ? 150 : 95;
}
static constexpr int64_t max_rel_pos_row_backward(int64_t head_dim) { return head_dim <= 96 ? 64 : 32; }

static constexpr bool rows_fit() {
    for (int dim : kAttentionDims) {
        if (backward_shared_bytes(dim, max_rel_pos_row_backward(dim)) > kLeastSharedBytes)
            return false;
        for (AttentionKernel kernel : {AttentionKernel::half, AttentionKernel::float32, AttentionKernel::tf32}) {
            const int64_t row = max_rel_pos_row(kernel == AttentionKernel::half ? DType::f16 : DType::f32, dim);
            if (row > kMaxRelPosEntries || attention_shared_bytes(kernel, dim, row) > kLeastSharedBytes)
                return false;
        }
    }
    return true;
}
static_assert(rows_fit(), "attention_shared_bytes and backward_shared_bytes");

} // namespace mvit
