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

// The gradient of q: with few queries the keys are split over blocks. Each part needs the whole delta, so there are two
// launches, one for each walk over the keys: the first leaves delta's sums of the parts, the second adds them up in
// order and leaves sums of the gradients, which attention_grad_sum adds up in order.
//
// Whether that pays is a model of time, in cycles of a multiprocessor. A block's walks are 5 products of 16 rows with
// 64 for each tile of keys and warp, 2 of them in the first. Two blocks on a multiprocessor take 1.25 for the steps of
// both, as in the forward. What is fixed is the forward's too, 1536 cycles for each step of its model: a block's start
// and end, writing a part, the start of one launch after another, reading 64 bytes a cycle of the parts. Sums of
// rel-pos rows in float32, which are not products, are not in it.
constexpr int64_t kGradQBlockCycles = 2300;
constexpr int64_t kGradQPartCycles = 1500;
constexpr int64_t kGradQLaunchCycles = 6900; // of the second launch and the sums
constexpr int64_t kMaxKeyParts = 16;

// Multiply-adds of a warp in a cycle.
static constexpr int64_t multiply_adds_of_warp(AttentionKernel kernel) {
    return kernel == AttentionKernel::half ? 256 : kernel == AttentionKernel::tf32 ? 128 : 32;
}

// `tiles`: the key tiles of a block; `blocks` are all, of all parts. In 16ths of a cycle.
static constexpr int64_t grad_q_cost(const AttentionProblem &p, int64_t blocks, int64_t tiles, int64_t parts,
                                     int64_t multiprocessors) {
    const int64_t rounds = blocks / (2 * multiprocessors), rest = blocks % (2 * multiprocessors);
    const int64_t time = 20 * rounds + (rest > multiprocessors ? 20 : rest > 0 ? 16 : 0);
    const int64_t product = 16 * kBackwardTile * attention_dim(p.head_dim) / multiply_adds_of_warp(attention_kernel(p));
    if (parts == 1)
        return time * (5 * product * tiles + kGradQBlockCycles);
    const int64_t part_bytes = kBackwardTile * (p.head_dim + rel_pos_entries(p)) * 4;
    return time * (5 * product * tiles + 2 * kGradQBlockCycles + kGradQPartCycles) + 16 * kGradQLaunchCycles +
           16 * ceil_div(blocks, multiprocessors) * part_bytes / 64;
}

struct KeyParts {
    int64_t parts, tiles; // key tiles of one
};

// Not where all multiprocessors are busy; nor in more parts than fill them twice, for their sums would be large.
static constexpr KeyParts grad_q_parts(const AttentionProblem &p, int64_t blocks, int64_t tiles,
                                       int64_t multiprocessors) {
    KeyParts best = {1, tiles};
    if (blocks >= 2 * multiprocessors)
        return best;
    for (int64_t wanted = 2; wanted <= min(tiles, kMaxKeyParts); ++wanted) {
        const int64_t of_part = ceil_div(tiles, wanted), parts = ceil_div(tiles, of_part);
        if (blocks * parts <= 4 * multiprocessors &&
            grad_q_cost(p, blocks * parts, of_part, parts, multiprocessors) <
                grad_q_cost(p, blocks * best.parts, best.tiles, best.parts, multiprocessors))
            best = {parts, of_part};
    }
    return best;
}

struct AttentionBackwardPlan {
    int64_t query_tiles, key_tiles;    // of one head
    int64_t parts, part_tiles;         // of the queries, for k and v; query tiles of one
    int64_t key_parts, key_part_tiles; // of the keys, for q; key tiles of one
    // Places in the scratch memory.
    int64_t statistics, bias_rows, k_sums, v_sums, delta_sums, q_sums, rel_pos_sums, total_bytes;
};

static constexpr int64_t round_to_256(int64_t bytes) { return round_up(bytes, 256); }

// Numbers of each query that the parts of the keys add up before the second walk: delta, and in float32 the sum of P.
static constexpr int64_t delta_numbers(DType dtype) { return dtype == DType::f32 ? 2 : 1; }

static constexpr AttentionBackwardPlan attention_backward_plan(const AttentionBackwardProblem &g,
                                                               int64_t multiprocessors) {
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
    const KeyParts keys = grad_q_parts(p, heads * plan.query_tiles, plan.key_tiles, multiprocessors);
    plan.key_parts = keys.parts, plan.key_part_tiles = keys.tiles;
    const int64_t rows = plan.key_parts > 1 ? plan.key_parts * heads * p.queries : 0;
    const int64_t padded = plan.key_parts > 1 ? plan.key_parts * heads * plan.query_tiles * kBackwardTile : 0;
    plan.delta_sums = plan.v_sums + (g.v ? round_to_256(sums) : 0);
    plan.q_sums = plan.delta_sums + round_to_256(padded * delta_numbers(p.dtype) * 4);
    plan.rel_pos_sums = plan.q_sums + (g.q ? round_to_256(rows * p.head_dim * 4) : 0);
    plan.total_bytes = plan.rel_pos_sums + (g.rel_pos ? round_to_256(rows * entries * 4) : 0);
    return plan;
}

static constexpr int64_t grad_q_blocks(const AttentionBackwardProblem &g, const AttentionBackwardPlan &plan) {
    return g.forward.batch * g.forward.heads * plan.query_tiles * plan.key_parts;
}
static constexpr int64_t grad_kv_blocks(const AttentionBackwardProblem &g, const AttentionBackwardPlan &plan) {
    return g.k || g.v ? g.forward.batch * g.forward.heads * plan.key_tiles * plan.parts : 0;
}
// What attention_grad_sum adds up, each in blocks of its own: a thread has eight channels of k and of v, eight of q, or
// an entry of a rel-pos row.
enum class GradSum : int { kv, q, rel_pos };

static constexpr int64_t grad_sum_threads(const AttentionBackwardProblem &g, const AttentionBackwardPlan &plan,
                                          GradSum of) {
    const AttentionProblem &p = g.forward;
    const int64_t heads = p.batch * p.heads;
    switch (of) {
    case GradSum::kv:
        return (g.k || g.v) && plan.parts > 1 ? heads * p.keys * p.head_dim / 8 : 0;
    case GradSum::q:
        return g.q && plan.key_parts > 1 ? heads * p.queries * p.head_dim / 8 : 0;
    default:
        return g.rel_pos && plan.key_parts > 1 ? heads * p.queries * rel_pos_entries(p) : 0;
    }
}
static constexpr int64_t grad_sum_blocks(const AttentionBackwardProblem &g, const AttentionBackwardPlan &plan,
                                         GradSum of) {
    return ceil_div(grad_sum_threads(g, plan, of), kBackwardThreads);
}

// What the kernels are told: the problem, its plan and the scratch memory.
struct AttentionBackwardWork {
    AttentionBackwardProblem gradients;
    AttentionBackwardPlan plan;
    char *scratch;
    bool second; // of the launches of attention_grad_q where keys are split
};

} // namespace mvit
