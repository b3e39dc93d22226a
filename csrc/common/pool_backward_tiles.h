// How the CUDA backward of pool3d_norm divides a problem, and where its scratch memory lies.
//
// Four kernels, each over all branches:
//   outputs     dy, the gradient before the norm; the winning taps of a maximum; sums for the norm's parameters
//   inputs      the gradient of x, gathered from dy
//   weight      sums of x * dy per tap
//   parameters  adds the sums of the blocks in a fixed order
#pragma once

#include "common/backward.h"
#include "common/pool_tiles.h"
#include "common/sum_tiles.h"

namespace mvit {

constexpr int kPoolTaps = 3;                // along w, that one block of the weight's gradient sums
constexpr int64_t kPoolWeightBlocks = 1024; // that keep every multiprocessor busy
constexpr int64_t kPoolWeightTokens = 256;  // outputs of a part, at least
constexpr int64_t kMaxWindow = 1 << 16;     // taps of a maximum: a winner is a 16-bit number

struct PoolBackwardBranch {
    bool makes_dy;      // where there is no norm, dy is the incoming gradient
    bool makes_winners; // of a maximum
    bool sums_norm;
    int64_t output_blocks, input_blocks, weight_blocks, parameter_blocks;
    int64_t weight_groups;          // heads with a weight of their own
    int64_t weight_parts, of_group; // parts of the outputs; lines of outputs of a group
    void *dy;                       // [batch * head][token][D], x's dtype
    uint16_t *winners;              // as dy, the tap
    float *norm_sums;               // [output block][2][D]: of norm_weight and norm_bias
    float *weight_sums;             // [group][part][tap][D]
};

struct PoolBackwardPlan {
    PoolBackwardProblem problem;
    PoolBackwardBranch branch[kMaxPoolBranches];
    int64_t bytes; // of scratch memory
};

// Blocks of kPoolTaps taps along w of the lines (kt, kh) of a kernel.
static constexpr int64_t pool_tap_lines(const PoolBranch &b) {
    return b.kernel.t * b.kernel.h * ceil_div(b.kernel.w, kPoolTaps);
}

// Inputs a stride apart along w have the same taps. A strip is kPoolStrip of those.
static constexpr int64_t pool_input_strips_of_row(const PoolBranch &b) {
    return b.stride.w * ceil_div(ceil_div(b.in.w, b.stride.w), kPoolStrip);
}
static constexpr int64_t pool_input_strips(const PoolProblem &p, const PoolBranch &b) {
    return b.in.t * b.in.h * pool_input_strips_of_row(b) + (p.has_cls ? 1 : 0);
}

// Only sizes where scratch is null.
static inline PoolBackwardPlan pool_backward_plan(const PoolBackwardProblem &problem, void *scratch) {
    PoolBackwardPlan plan = {};
    plan.problem = problem;
    const PoolProblem &p = problem.forward;
    const int64_t heads = p.batch * p.heads, slices = pool_slices(p);
    const auto take = [&](int64_t bytes) -> void * {
        void *const at = scratch ? static_cast<char *>(scratch) + plan.bytes : nullptr;
        plan.bytes += round_up(bytes, 256);
        return at;
    };
    for (int i = 0; i < p.branches; ++i) {
        const PoolBranch &b = p.branch[i];
        const PoolBranchGradients &g = problem.gradients[i];
        PoolBackwardBranch &of = plan.branch[i];
        of.makes_dy = b.norm && (g.x || g.weight.data);
        of.makes_winners = b.mode == PoolMode::max && g.x;
        of.sums_norm = b.norm && (g.norm_weight.data || g.norm_bias.data);
        const int64_t outputs = heads * pool_tokens(p, b.out_grid);
        if (of.makes_dy || of.makes_winners || of.sums_norm)
            of.output_blocks = pool_blocks(p, b);
        if (of.makes_dy)
            of.dy = take(outputs * p.head_dim * int64_t(size_of(p.dtype)));
        if (of.makes_winners)
            of.winners = static_cast<uint16_t *>(take(outputs * p.head_dim * 2));
        if (of.sums_norm)
            of.norm_sums = static_cast<float *>(take(of.output_blocks * 2 * p.head_dim * 4));
        if (g.x)
            of.input_blocks = heads * slices * ceil_div(pool_input_strips(p, b), kPoolGroups * kPoolPasses);
        of.weight_groups = b.per_head_weight ? p.heads : 1;
        if (g.weight.data) {
            of.of_group = heads / of.weight_groups * b.out_grid.t * b.out_grid.h;
            const int64_t blocks = of.weight_groups * slices * pool_tap_lines(b);
            const int64_t most = min(of.of_group, ceil_div(of.of_group * b.out_grid.w, kPoolWeightTokens));
            of.weight_parts = min(ceil_div(kPoolWeightBlocks, max(1, blocks)), most); // 0 of an empty batch
            of.weight_blocks = blocks * of.weight_parts;
            of.weight_sums =
                static_cast<float *>(take(of.weight_groups * of.weight_parts * volume(b.kernel) * p.head_dim * 4));
        }
        // One for each row of sums: the taps of each group, and the two vectors of the norm.
        of.parameter_blocks =
            slices * ((g.weight.data ? of.weight_groups * volume(b.kernel) : 0) + (of.sums_norm ? 2 : 0));
    }
    return plan;
}

// Of the kernels over outputs and inputs: the taps of a block's channels, the norm's weight, and sums for its
// parameters of each group of threads, in float32.
static constexpr int64_t pool_backward_shared_bytes(const PoolProblem &p) {
    return pool_shared_bytes(p) + 2 * kPoolGroups * kPoolChannels * 4;
}
// Of the weight's gradient: sums of each group of threads.
constexpr int64_t kPoolWeightSharedBytes = kPoolGroups * kPoolTaps * kPoolChannels * 4;
static_assert(kPoolChannels == kSumChannels, "a block of `parameters` adds the channels of a slice");

} // namespace mvit
