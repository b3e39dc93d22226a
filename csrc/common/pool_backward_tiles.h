// How the CUDA backward of pool3d_norm divides a problem, and where its scratch memory lies.
//
// Four steps, each over all branches, the first three with a kernel for tiles and one for other windows:
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
    PoolTiling tiling; // of the outputs
    PoolTiling weight_tiling;
    int64_t output_tiles, output_strips, input_strips, weight_tile_blocks, weight_blocks, parameter_blocks;
    int64_t weight_groups;          // heads with a weight of their own
    int64_t weight_parts, of_group; // parts of the tiles, or of the lines of outputs, of a group; those
    void *dy;                       // [batch * head][token][D], x's dtype
    uint16_t *winners;              // as dy, the tap
    float *norm_sums;               // [output block][2][D]: of norm_weight, norm_bias
    float *weight_sums;             // [group][part][tap][D]
};

struct PoolBackwardPlan {
    PoolBackwardProblem problem;
    PoolBackwardBranch branch[kMaxPoolBranches];
    int64_t bytes; // of scratch memory
};

// The gradient of x where the stride is 1: a pooling of dy by the flipped taps.
struct PoolTransposedPlan {
    PoolPlan plan; // `out` is the gradient of x
    int64_t stride_b[kMaxPoolBranches], stride_h[kMaxPoolBranches], stride_n[kMaxPoolBranches]; // of that
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

static constexpr bool pool_transposes(const PoolBranch &b) {
    return pool_fits_tiles(b) && b.mode == PoolMode::conv && volume(b.stride) == 1 && b.padding.t < b.kernel.t &&
           b.padding.h < 3 && b.padding.w < 3;
}

// Shared memory of the weight's gradient by tiles: two frames of inputs, and the frames of dy that a frame of inputs
// meets and one more; at its end 9 taps of two channels of each thread.
static constexpr int64_t pool_weight_dy_bytes(const PoolProblem &p, const PoolTiling &of) {
    return of.lines * kPoolTileWidth * min(p.head_dim, kPoolChannels) * int64_t(size_of(p.dtype));
}
static constexpr int64_t pool_weight_tile_bytes(const PoolProblem &p, const PoolTiling &of) {
    return max(2 * of.frame_bytes + (of.frames + 1) * pool_weight_dy_bytes(p, of), kPoolTileThreads * 18 * 4);
}

// Tiles of the weight's gradient. A block takes one after the other and keeps its sums, so there need be no more blocks
// than run at once on a large GPU.
static constexpr PoolTiling pool_weight_tiling(const PoolProblem &p, const PoolBranch &b) {
    PoolTiling of = pool_tiling(p, b);
    if (of.tiles == 0)
        return of;
    for (int64_t most = of.lines;; --most) {
        of.tiles_h = ceil_div(b.out_grid.h, most);
        of.lines = int(ceil_div(b.out_grid.h, of.tiles_h));
        of.frame_bytes = pool_tile_extent(of.lines, of.step) * pool_tile_extent(kPoolTileWidth, of.step) *
                         min(p.head_dim, kPoolChannels) * int64_t(size_of(p.dtype));
        of.shared_bytes = pool_weight_tile_bytes(p, of);
        if (of.shared_bytes <= kPoolTileBytes || most == 1)
            break;
    }
    of.tiles = p.batch * p.heads * pool_slices(p) * of.tiles_h * of.tiles_w;
    // As in pool_plan: the fewest frames in turn, a tile taking the time of about two to begin.
    int64_t best = 1, least = 0;
    for (int64_t runs = 1; runs <= b.out_grid.t; ++runs) {
        const int64_t run = ceil_div(b.out_grid.t, runs), tiles = of.tiles * ceil_div(b.out_grid.t, run);
        const int64_t cost = ceil_div(tiles, kPoolTileSlots) * (run + of.frames + 1);
        if (runs == 1 || cost < least)
            best = runs, least = cost;
    }
    of.run = int(ceil_div(b.out_grid.t, best));
    of.runs = ceil_div(b.out_grid.t, of.run);
    of.blocks = of.tiles * of.runs;
    return of;
}

// Only sizes where scratch is null.
static inline PoolBackwardPlan pool_backward_plan(const PoolBackwardProblem &problem, void *scratch) {
    PoolBackwardPlan plan = {};
    plan.problem = problem;
    const PoolProblem &p = problem.forward;
    const PoolPlan forward = pool_plan(p);
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
        of.tiling = forward.tiling[i];
        of.makes_dy = b.norm && (g.x || g.weight.data);
        of.makes_winners = b.mode == PoolMode::max && g.x;
        of.sums_norm = b.norm && (g.norm_weight.data || g.norm_bias.data);
        // In float32 the tiles' kernel would spill registers; a maximum's has no place for the winners.
        const bool tiles = pool_fits_tiles(b) && p.dtype != DType::f32 && !of.makes_winners;
        const int64_t outputs = heads * pool_tokens(p, b.out_grid);
        if (of.makes_dy || of.makes_winners || of.sums_norm) {
            of.output_tiles = tiles ? of.tiling.blocks : 0;
            of.output_strips = tiles ? 0 : pool_strip_blocks(p, b);
        }
        if (of.makes_dy)
            of.dy = take(outputs * p.head_dim * int64_t(size_of(p.dtype)));
        if (of.makes_winners)
            of.winners = static_cast<uint16_t *>(take(outputs * p.head_dim * 2));
        if (of.sums_norm)
            of.norm_sums = static_cast<float *>(take((of.output_tiles + of.output_strips) * 2 * p.head_dim * 4));
        if (g.x && !pool_transposes(b))
            of.input_strips = heads * slices * ceil_div(pool_input_strips(p, b), kPoolGroups * kPoolPasses);
        of.weight_groups = b.per_head_weight ? p.heads : 1;
        if (g.weight.data) {
            const int64_t of_group = heads / max(1, of.weight_groups); // batch * head with one filter
            of.weight_tiling = b.mode == PoolMode::conv ? pool_weight_tiling(p, b) : PoolTiling{};
            if (pool_fits_tiles(b) && volume(b.out_grid)) {
                const int64_t columns = of.weight_groups * slices;
                of.of_group = of_group * pool_tiles_of_head(of.weight_tiling);
                of.weight_parts = min(ceil_div(kPoolTileSlots, max(1, columns)), of.of_group);
                of.weight_tile_blocks = columns * of.weight_parts;
            } else {
                of.of_group = of_group * b.out_grid.t * b.out_grid.h;
                const int64_t blocks = of.weight_groups * slices * pool_tap_lines(b);
                const int64_t most = min(of.of_group, ceil_div(of.of_group * b.out_grid.w, kPoolWeightTokens));
                of.weight_parts = min(ceil_div(kPoolWeightBlocks, max(1, blocks)), most); // 0 of an empty batch
                of.weight_blocks = blocks * of.weight_parts;
            }
            of.weight_sums =
                static_cast<float *>(take(of.weight_groups * of.weight_parts * volume(b.kernel) * p.head_dim * 4));
        }
        // One for each row of sums: the taps of each group, and the two vectors of the norm.
        of.parameter_blocks =
            slices * ((g.weight.data ? of.weight_groups * volume(b.kernel) : 0) + (of.sums_norm ? 2 : 0));
    }
    return plan;
}

static inline PoolTransposedPlan pool_transposed_plan(const PoolBackwardPlan &backward) {
    const PoolProblem &forward = backward.problem.forward;
    PoolProblem p = forward;
    for (int i = 0; i < p.branches; ++i) {
        PoolBranch &b = p.branch[i];
        const PoolBranchGradients &g = backward.problem.gradients[i];
        const int64_t of_head = pool_tokens(p, b.out_grid) * p.head_dim;
        if (!g.x || !pool_transposes(b)) {
            b.out_grid = {0, 0, 0}; // nothing to do
            continue;
        }
        b.x = b.norm ? backward.branch[i].dy : g.grad;
        b.out = g.x;
        b.stride_b = b.norm ? p.heads * of_head : g.stride_b;
        b.stride_h = b.norm ? of_head : g.stride_h;
        b.stride_n = b.norm ? p.head_dim : g.stride_n;
        const Size3 in = b.in;
        b.in = b.out_grid, b.out_grid = in;
        b.padding = {b.kernel.t - 1 - b.padding.t, 2 - b.padding.h, 2 - b.padding.w};
        b.norm = false;
    }
    PoolTransposedPlan plan = {};
    plan.plan = pool_plan(p);
    for (int i = 0; i < p.branches; ++i) {
        plan.plan.tiling[i].flipped = true;
        plan.stride_b[i] = backward.problem.gradients[i].x_stride_b;
        plan.stride_h[i] = backward.problem.gradients[i].x_stride_h;
        plan.stride_n[i] = backward.problem.gradients[i].x_stride_n;
    }
    return plan;
}

// ---- Shared memory ----

// Sums for the norm's parameters of each group of threads.
static constexpr int64_t pool_norm_sum_bytes(int groups) { return groups * 2 * kPoolChannels * 4; }

static constexpr int64_t pool_output_strip_bytes(const PoolBranch &b) {
    return pool_strip_shared_bytes(b) + pool_norm_sum_bytes(kPoolGroups);
}
static constexpr int64_t pool_output_tile_bytes(const PoolTiling &of) {
    return of.shared_bytes + pool_norm_sum_bytes(kPoolTileGroups);
}

// Of the weight's gradient: sums of each group of threads.
constexpr int64_t kPoolWeightSharedBytes = kPoolGroups * kPoolTaps * kPoolChannels * 4;
static_assert(kPoolChannels == kSumChannels, "a block of `parameters` adds the channels of a slice");

} // namespace mvit
