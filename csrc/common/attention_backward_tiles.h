// How the CUDA kernels for the backward of pooling attention divide a problem. Pure functions of shapes, so a host can
// test them.
#pragma once

#include "common/attention_tiles.h"
#include "common/backward.h"

namespace mvit {

// A block keeps 64 queries (or keys), 16 for each of 4 warps, and walks the other side in tiles of 64.
constexpr int kBackwardTile = 64;
constexpr int kBackwardThreads = 128;
constexpr int kBackwardBlocks = 2; // on one multiprocessor, for the register budget

// Of a tile, the columns that a warp takes at once: S and dP are half as many registers of a thread each. The gradient
// of q keeps q, dO and dq besides, dim registers; that of k and v keeps k, v, dk and dv, 1.5 * dim.
static constexpr int grad_q_step(int dim) { return dim > 96 ? 32 : 64; }
static constexpr int grad_kv_step(int dim) { return dim > 96 ? 16 : 32; }

// Entries of rel-pos rows are taken 16 at a time, the depth of a tensor-core product. In shared memory a row of bias
// is two rows of 16-bit numbers, what rounding leaves of a float32 and the rest; 16 bytes more spread the rows over
// the banks.
static constexpr int64_t rel_pos_depth(int64_t entries) { return round_up(entries, 16); }
static constexpr int64_t bias_row_bytes(int64_t entries) { return 4 * rel_pos_depth(entries) + 16; }
static constexpr int64_t one_hot_row_bytes(int64_t entries) { return 2 * rel_pos_depth(entries) + 16; }
// In memory, 16-byte pieces for cp.async: the entries rounded up to 8, twice.
static constexpr int64_t stored_bias_row_bytes(int64_t entries) { return 4 * round_up(entries, 8); }

// Two stages of two tiles of rows; then, with relative position, the rows of bias, the keys' one-hot rows of both
// stages, and sums of the rows' gradients.
static constexpr int64_t grad_q_shared_bytes(int dim, int64_t entries) {
    const int64_t tiles = 2 * 2 * kBackwardTile * dim * 2;
    const int64_t row = bias_row_bytes(entries) + 2 * one_hot_row_bytes(entries) + 4 * rel_pos_depth(entries);
    return tiles + (entries ? kBackwardTile * row : 0);
}

// Two stages of two tiles of rows and of the queries' two statistics; then the keys' one-hot rows and, per stage, the
// rows of bias.
static constexpr int64_t grad_kv_shared_bytes(int dim, int64_t entries) {
    const int64_t stages = 2 * (2 * kBackwardTile * dim * 2 + 2 * kBackwardTile * 4);
    const int64_t row = one_hot_row_bytes(entries) + 2 * bias_row_bytes(entries);
    return stages + (entries ? kBackwardTile * row : 0);
}

// float32: tiles of 16 keys (or queries) are walked, and probabilities go through shared memory, a warp's rows 4
// numbers apart from a multiple of the tile. The rows of bias end with a number for keys without one, and so do their
// sums.
constexpr int kFloat32Step = 16;
constexpr int kFloat32Pitch = 4 * (kFloat32Step + 4);
constexpr int kFloat32Statistics = 4; // of a query: lse, delta, the reciprocal of the sum of P, grad_lse

// Two stages, where they fit in the 99 KB of sm_86, sm_89 and sm_120.
static constexpr int float32_stages(int dim) { return dim > 96 ? 1 : 2; }
static constexpr int64_t float32_tiles_bytes(int dim) {
    return (2 * kBackwardTile + float32_stages(dim) * 2 * kFloat32Step) * dim * 4 + kBackwardTile * kFloat32Pitch;
}
static constexpr int64_t grad_q_float32_shared_bytes(int dim, int64_t entries) {
    const int64_t bias = 2 * kBackwardTile * (entries + 1) * 4 + 2 * kFloat32Step * 4;
    return float32_tiles_bytes(dim) + (entries ? bias : 0);
}
static constexpr int64_t grad_kv_float32_shared_bytes(int dim, int64_t entries) {
    const int64_t bias = 2 * kFloat32Step * (entries + 1) * 4 + kBackwardTile * 4;
    return float32_tiles_bytes(dim) + float32_stages(dim) * kFloat32Statistics * kFloat32Step * 4 +
           (entries ? bias : 0);
}

// What a device must allow a block.
static constexpr int64_t backward_shared_bytes(DType dtype, int64_t head_dim, int64_t entries) {
    const int dim = attention_dim(head_dim);
    return dtype == DType::f32
               ? max(grad_q_float32_shared_bytes(dim, entries), grad_kv_float32_shared_bytes(dim, entries))
               : max(grad_q_shared_bytes(dim, entries), grad_kv_shared_bytes(dim, entries));
}

// The longest row of relative position with which the backward kernels fit in `shared_bytes`; -1 if they never do.
static constexpr int64_t max_backward_rel_pos_row(DType dtype, int64_t head_dim, int64_t shared_bytes) {
    int64_t entries = -1;
    while (entries < kMaxRelPosEntries && backward_shared_bytes(dtype, head_dim, entries + 1) <= shared_bytes)
        ++entries;
    return entries;
}

// The gradient of k and v: with few keys and many queries the queries are split over blocks, and their sums added in
// order by one more kernel. A part of 8 tiles writes and reads a byte of sums for some 200 FLOP.
constexpr int64_t kGradKvBlocks = 512; // wanted: about two waves of two blocks on 132 multiprocessors
constexpr int64_t kGradKvLeastTiles = 8;

struct AttentionBackwardPlan {
    int64_t query_tiles, key_tiles;                             // of one head
    int64_t parts, part_tiles;                                  // of the queries; query tiles of one
    int64_t statistics, bias_rows, k_sums, v_sums, total_bytes; // places in the scratch memory
};

static constexpr int64_t round_to_256(int64_t bytes) { return round_up(bytes, 256); }

static constexpr AttentionBackwardPlan attention_backward_plan(const AttentionBackwardProblem &g) {
    const AttentionProblem &p = g.forward;
    const int64_t heads = p.batch * p.heads, entries = rel_pos_entries(p);
    AttentionBackwardPlan plan = {};
    plan.query_tiles = ceil_div(p.queries, kBackwardTile);
    plan.key_tiles = ceil_div(p.keys, kBackwardTile);
    const int64_t wanted = ceil_div(kGradKvBlocks, max(1, heads * plan.key_tiles));
    plan.parts = clamp(wanted, 1, max(1, plan.query_tiles / kGradKvLeastTiles));
    plan.part_tiles = max(1, ceil_div(plan.query_tiles, plan.parts));
    plan.parts = max(1, ceil_div(plan.query_tiles, plan.part_tiles));
    const bool needs_kv = g.k || g.v;
    const int64_t sums = plan.parts > 1 ? plan.parts * heads * p.keys * p.head_dim * 4 : 0;
    const bool is_half = p.dtype != DType::f32;
    const int64_t statistics = is_half ? 2 : kFloat32Statistics;
    plan.bias_rows = needs_kv ? round_to_256(heads * plan.query_tiles * statistics * kBackwardTile * 4) : 0;
    plan.k_sums = plan.bias_rows;
    if (needs_kv && is_half)
        plan.k_sums += round_to_256(heads * p.queries * stored_bias_row_bytes(entries));
    plan.v_sums = plan.k_sums + (g.k ? round_to_256(sums) : 0);
    plan.total_bytes = plan.v_sums + (g.v ? round_to_256(sums) : 0);
    return plan;
}

static constexpr int64_t grad_q_blocks(const AttentionBackwardProblem &g, const AttentionBackwardPlan &plan) {
    return g.forward.batch * g.forward.heads * plan.query_tiles;
}
static constexpr int64_t grad_kv_blocks(const AttentionBackwardProblem &g, const AttentionBackwardPlan &plan) {
    return g.k || g.v ? g.forward.batch * g.forward.heads * plan.key_tiles * plan.parts : 0;
}
// Of attention_grad_sum: a thread adds eight channels of k and of v.
static constexpr int64_t grad_sum_threads(const AttentionBackwardProblem &g) {
    return g.forward.batch * g.forward.heads * g.forward.keys * g.forward.head_dim / 8;
}

// What the kernels are told: the problem, its plan and the scratch memory.
struct AttentionBackwardWork {
    AttentionBackwardProblem gradients;
    AttentionBackwardPlan plan;
    char *scratch;
};

} // namespace mvit
