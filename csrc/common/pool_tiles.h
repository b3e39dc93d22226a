// How the CUDA kernels of pool3d_norm divide a problem.
#pragma once

#include "common/grid.h"

namespace mvit {

// ---- Strips: any window, a strip of outputs in the registers of a thread, tokens straight from global memory ----

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

static constexpr int64_t pool_strip_blocks(const PoolProblem &p, const PoolBranch &b) {
    return p.batch * p.heads * pool_slices(p) * ceil_div(pool_strips(p, b), kPoolGroups * kPoolPasses);
}

// The taps of a block's channels and the two vectors of the norm, in float32.
static constexpr int64_t pool_strip_shared_bytes(const PoolBranch &b) {
    return ((b.mode == PoolMode::conv ? volume(b.kernel) : 0) + 2) * kPoolChannels * 4;
}

// ---- Tiles: windows of 3 x 3, with 3 frames or 1, that march along t ----

constexpr int kPoolTileThreads = 192;
constexpr int kPoolTileWidth = 7; // outputs along w, all of a thread: 56, 28, 14 and 7 are multiples
constexpr int kPoolTileGroups = kPoolTileThreads / kPoolLanes;
constexpr int64_t kPoolTileBytes = 76 << 10; // of shared memory, at most: two blocks or three on a multiprocessor
constexpr int64_t kPoolTileSlots = 264;      // blocks that run at once on a large GPU

// The outputs of a block: `lines` x kPoolTileWidth of a frame, and `run` frames. Along an axis the inputs under its
// windows, without those that stride > kernel leaves out, are (outputs - 1) * step + 3.
struct PoolTiling {
    int frames, step; // of the kernel along t; inputs from output to output along h and w
    int lines, run;
    int64_t tiles_h, tiles_w, runs; // of one (batch, head)
    int64_t frame_bytes, tap_bytes; // of shared memory: one frame of inputs; the taps
    int64_t staging_bytes;          // float32 rows of outputs
    int64_t shared_bytes;
    int64_t tiles, blocks; // of all; blocks = tiles * runs
    bool flipped;          // taps in reverse order along all axes: the backward of stride 1
};

static constexpr int64_t pool_tiles_of_head(const PoolTiling &of) { return of.tiles_h * of.tiles_w * of.runs; }

// Channels from tap to tap in shared memory: two more than there are, for fewer bank conflicts in putting them there.
constexpr int pool_tap_pitch(int channels) { return channels + 2; }

constexpr int pool_tile_extent(int outputs, int step) { return (outputs - 1) * step + 3; }

static constexpr int64_t pool_tile_shared_bytes(const PoolTiling &of) {
    return 2 * of.frame_bytes + of.tap_bytes + of.staging_bytes + 2 * kPoolChannels * 4;
}

// A convolution, or a maximum over one frame; steps along h and w are the same, and one along t.
static constexpr bool pool_fits_tiles(const PoolBranch &b) {
    const bool frames = b.kernel.t == 1 || (b.kernel.t == 3 && b.stride.t == 1 && b.mode == PoolMode::conv);
    return frames && b.kernel.h == 3 && b.kernel.w == 3 && min(b.stride.h, 3) == min(b.stride.w, 3) &&
           b.mode != PoolMode::avg;
}

// Without `run` and what depends on it; `tiles` is 0 where the branch does not fit, or has no outputs.
static constexpr PoolTiling pool_tiling(const PoolProblem &p, const PoolBranch &b) {
    PoolTiling of = {};
    if (!pool_fits_tiles(b) || volume(b.out_grid) == 0)
        return of;
    const int64_t channels = min(p.head_dim, kPoolChannels), token = channels * int64_t(size_of(p.dtype));
    of.frames = int(b.kernel.t);
    of.step = int(min(b.stride.w, 3));
    // As many lines as there are threads for, a thread having two channels; fewer where memory ends first.
    int64_t most = min(b.out_grid.h, kPoolTileThreads / (channels / 2));
    for (;; --most) {
        of.tiles_h = ceil_div(b.out_grid.h, most);
        of.lines = int(ceil_div(b.out_grid.h, of.tiles_h));
        of.frame_bytes = pool_tile_extent(of.lines, of.step) * pool_tile_extent(kPoolTileWidth, of.step) * token;
        of.tap_bytes = b.mode == PoolMode::conv ? round_up(of.frames * 9 * pool_tap_pitch(int(channels)) * 4, 16) : 0;
        of.staging_bytes = of.lines * kPoolTileWidth * channels * 4;
        of.shared_bytes = pool_tile_shared_bytes(of);
        if (of.shared_bytes <= kPoolTileBytes || most == 1)
            break;
    }
    of.tiles_w = ceil_div(b.out_grid.w, kPoolTileWidth);
    of.tiles = p.batch * p.heads * pool_slices(p) * of.tiles_h * of.tiles_w;
    return of;
}

// ---- Both ----

// A branch is cut into tiles where its windows fit, else into strips.
struct PoolPlan {
    PoolProblem problem;
    PoolTiling tiling[kMaxPoolBranches];
    int64_t strip_blocks[kMaxPoolBranches]; // 0 where there are tiles
};

static constexpr void pool_cut_runs(PoolPlan &plan, int64_t runs) {
    for (int i = 0; i < plan.problem.branches; ++i) {
        PoolTiling &of = plan.tiling[i];
        const int64_t frames = max(1, plan.problem.branch[i].out_grid.t);
        of.run = int(ceil_div(frames, runs));
        of.runs = ceil_div(frames, of.run);
        of.blocks = of.tiles * of.runs;
    }
}

static constexpr PoolPlan pool_plan(const PoolProblem &p) {
    PoolPlan plan = {};
    plan.problem = p;
    int64_t most = 1;
    for (int i = 0; i < p.branches; ++i) {
        plan.tiling[i] = pool_tiling(p, p.branch[i]);
        if (!pool_fits_tiles(p.branch[i]))
            plan.strip_blocks[i] = pool_strip_blocks(p, p.branch[i]);
        most = max(most, p.branch[i].out_grid.t);
    }
    // Long runs read each frame once, short ones make more blocks. The fewest frames in turn on a large GPU, where a
    // block also takes the time of about two frames to begin.
    int64_t best = 1, least = 0;
    for (int64_t runs = 1; runs <= most; ++runs) {
        pool_cut_runs(plan, runs);
        int64_t blocks = 0, frames = 0;
        for (int i = 0; i < p.branches; ++i)
            if (plan.tiling[i].blocks) {
                blocks += plan.tiling[i].blocks;
                frames = max(frames, plan.tiling[i].run + plan.tiling[i].frames - 1);
            }
        const int64_t cost = ceil_div(blocks, kPoolTileSlots) * (frames + 2);
        if (runs == 1 || cost < least)
            best = runs, least = cost;
    }
    pool_cut_runs(plan, best);
    return plan;
}

// ---- What is read ----

// Coordinates of an axis that are read when its outputs are made `at_once` at a time, each coordinate once for those.
static constexpr int64_t pool_axis_reads(int64_t n, int64_t outputs, int64_t kernel, int64_t stride, int64_t padding,
                                         int64_t at_once) {
    int64_t reads = 0;
    for (int64_t first = 0; first < outputs; first += at_once) {
        const int64_t last = min(first + at_once, outputs);
        int64_t end = 0; // of what the outputs before have read
        for (int64_t o = first; o < last; ++o) {
            const int64_t start = max(o == first ? 0 : end, o * stride - padding);
            end = max(start, min(n, o * stride - padding + kernel));
            reads += end - start;
        }
    }
    return reads;
}

static constexpr int64_t pool_reads(const PoolBranch &b, Size3 at_once) {
    return pool_axis_reads(b.in.t, b.out_grid.t, b.kernel.t, b.stride.t, b.padding.t, at_once.t) *
           pool_axis_reads(b.in.h, b.out_grid.h, b.kernel.h, b.stride.h, b.padding.h, at_once.h) *
           pool_axis_reads(b.in.w, b.out_grid.w, b.kernel.w, b.stride.w, b.padding.w, at_once.w);
}

// Grid tokens of one (batch, head) that the pooling needs, and those that its blocks read from global memory: more
// where tiles share the tokens between them.
static constexpr int64_t pool_tokens_needed(const PoolBranch &b) { return pool_reads(b, b.out_grid); }
static constexpr int64_t pool_tokens_read(const PoolBranch &b, const PoolTiling &of) {
    return pool_reads(b, of.tiles ? Size3{of.run, of.lines, kPoolTileWidth} : Size3{1, 1, kPoolStrip});
}

} // namespace mvit
