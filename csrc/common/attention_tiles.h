// How the CUDA pooling_attention kernels divide a problem. Pure functions of shapes, so a host can test them.
#pragma once

#include "common/grid.h"

namespace mvit {

// The head dims the kernels are compiled for; others are padded with zeros to the next of these.
constexpr int kAttentionDims[] = {48, 64, 80, 96, 128};

// 0 where the head dim is too large.
static constexpr int attention_dim(int64_t head_dim) {
    for (int dim : kAttentionDims)
        if (head_dim <= dim)
            return dim;
    return 0;
}

// The smallest head dim that is padded to one of these.
static constexpr int attention_least_dim(int dim) {
    int least = 8;
    for (int smaller : kAttentionDims)
        if (smaller < dim)
            least = smaller + 8;
    return least;
}

// The three kernels: tensor cores on 16-bit numbers, float32 as IEEE has it, tensor cores on TF32.
enum class AttentionKernel { half, float32, tf32 };

static constexpr AttentionKernel attention_kernel(const AttentionProblem &p) {
    return p.dtype != DType::f32 ? AttentionKernel::half : p.tf32 ? AttentionKernel::tf32 : AttentionKernel::float32;
}

// How a kernel adds the decomposed relative position: as a product of rows of entries with a one-hot matrix of keys, on
// tensor cores; or by three loads for each score.
enum class AttentionBias { none, product, gather };

// The bias of a key is the sum of three entries of its query's row. Where they are gathered the row ends with a zero
// for keys without a bias, and they are named by three 10-bit numbers.
constexpr int64_t kMaxRelPosEntries = 1022;

// Past this the product is no cheaper: its depth is 2 / 3 of what q k^T has at head dim 96, and shared memory runs out.
constexpr int64_t kMaxProductEntries = 48;

static constexpr int64_t rel_pos_entries(const AttentionProblem &p) {
    return p.rel_pos ? p.grid_k.t + p.grid_k.h + p.grid_k.w : 0;
}

static constexpr AttentionBias attention_bias(const AttentionProblem &p) {
    return !p.rel_pos                                                          ? AttentionBias::none
           : p.dtype != DType::f32 && rel_pos_entries(p) <= kMaxProductEntries ? AttentionBias::product
                                                                               : AttentionBias::gather;
}

// The depth of the product: each entry twice, rounded and what rounding leaves. A row of it in shared memory.
static constexpr int64_t bias_product_depth(int64_t entries) { return round_up(2 * entries, 16); }
static constexpr int64_t bias_product_pitch(int64_t entries) { return 2 * bias_product_depth(entries) + 16; }

struct AttentionTile {
    int rows;    // queries of a block
    int keys;    // of one step
    int threads; // of a block
    int blocks;  // on one multiprocessor, for the register budget
};

// 16 bit: a warp has 32 queries, so that each fragment of k and v serves two products. S and O of a thread are keys +
// dim registers; 255 allow 64 keys up to dim 96, 32 at dim 128. The addresses of a gathered bias need the room of half
// the queries. float32: a thread has 4 x 4 scores and 4 x dim / 8 outputs; TF32: a warp has 16 queries, S, O and q are
// keys / 2 + dim registers.
static constexpr AttentionTile attention_tile(AttentionKernel kernel, int dim, AttentionBias bias) {
    return kernel == AttentionKernel::half
               ? AttentionTile{bias == AttentionBias::gather || dim > 96 ? 64 : 128, 64, 128, 2}
               : AttentionTile{64, 32, 128, 2};
}

static constexpr AttentionTile attention_tile(const AttentionProblem &p) {
    return attention_tile(attention_kernel(p), attention_dim(p.head_dim), attention_bias(p));
}

// A row of probabilities of the float32 kernel: four rows of a warp begin 8 banks apart.
static constexpr int attention_probability_pitch(int keys) { return keys + 8; }

// The tiles of q, k and v; probabilities where they can't stay in registers; the bias: two matrices of the product, or
// the rows of bias and the entries that a key's bias is made of.
static constexpr int64_t attention_shared_bytes(const AttentionProblem &p) {
    const AttentionTile tile = attention_tile(p);
    const AttentionKernel kernel = attention_kernel(p);
    const int64_t entries = rel_pos_entries(p);
    const int64_t tiles = (tile.rows + 2 * tile.keys) * attention_dim(p.head_dim) * int64_t(size_of(p.dtype));
    const int64_t probabilities =
        kernel == AttentionKernel::float32 ? tile.rows * attention_probability_pitch(tile.keys) * 4 : 0;
    const int64_t bias = attention_bias(p) == AttentionBias::none ? 0
                         : attention_bias(p) == AttentionBias::product
                             ? (tile.rows + tile.keys) * bias_product_pitch(entries)
                             : tile.rows * (entries + 1) * 4 + tile.keys * 4;
    return tiles + probabilities + bias;
}

// One launch: with few queries the keys are split among several blocks, each of which writes its part of the result,
// and attention_combine adds the parts up.
struct AttentionForward {
    AttentionProblem p;
    int64_t splits, keys_of_split; // whole tiles of keys
    float *parts;                  // scratch of attention_scratch_bytes where splits > 1
};

static constexpr int64_t attention_row_tiles(const AttentionProblem &p) {
    return ceil_div(p.queries, attention_tile(p).rows);
}

// A model of time, in 32nds of a step of a block that has a multiprocessor for itself. Two blocks there take 1.25 for a
// step of both, for each hides the other's waiting. A block's start and end take 1.5 steps, 2.5 where it writes a part;
// the second launch takes 3, and half a step for each part that a multiprocessor has to read.
static constexpr int64_t attention_cost(int64_t blocks, int64_t steps, int64_t splits, int64_t multiprocessors) {
    const int64_t rounds = blocks / (2 * multiprocessors), rest = blocks % (2 * multiprocessors);
    const int64_t time = 20 * rounds + (rest > multiprocessors ? 20 : rest > 0 ? 16 : 0);
    return splits > 1 ? time * (2 * steps + 5) + 96 + 16 * ceil_div(blocks, multiprocessors) : time * (2 * steps + 3);
}

constexpr int64_t kMaxAttentionSplits = 16;

static constexpr AttentionForward attention_forward(const AttentionProblem &p, int64_t multiprocessors) {
    const int64_t keys_of_tile = attention_tile(p).keys;
    const int64_t tiles = ceil_div(p.keys, keys_of_tile), blocks = p.batch * p.heads * attention_row_tiles(p);
    int64_t best = tiles, best_splits = 1;
    if (blocks >= 2 * multiprocessors) // all multiprocessors are busy, and the parts would be large
        return {p, 1, tiles * keys_of_tile, nullptr};
    for (int64_t wanted = 2; wanted <= min(tiles, kMaxAttentionSplits); ++wanted) {
        const int64_t steps = ceil_div(tiles, wanted), splits = ceil_div(tiles, steps);
        if (attention_cost(blocks * splits, steps, splits, multiprocessors) <
            attention_cost(blocks * best_splits, best, best_splits, multiprocessors))
            best = steps, best_splits = splits;
    }
    return {p, best_splits, best * keys_of_tile, nullptr};
}

static constexpr int64_t attention_blocks(const AttentionForward &f) {
    return f.p.batch * f.p.heads * attention_row_tiles(f.p) * f.splits;
}

static constexpr int64_t attention_rows(const AttentionProblem &p) { return p.batch * p.heads * p.queries; }

// For each part and row: the outputs before their division, (splits, B, H, Nq, D); then (splits, B, H, Nq) pairs of
// the largest score and the sum of exponentials.
static constexpr int64_t attention_scratch_bytes(const AttentionForward &f) {
    return f.splits > 1 ? f.splits * attention_rows(f.p) * (f.p.head_dim + 2) * 4 : 0;
}

constexpr int kCombineThreads = 128;

// Each thread of attention_combine has 8 channels of a row.
static constexpr int64_t attention_combine_blocks(const AttentionProblem &p) {
    return ceil_div(attention_rows(p) * (p.head_dim / 8), kCombineThreads);
}

} // namespace mvit
