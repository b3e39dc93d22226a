// How the CUDA backward of decomposed_rel_pos divides a problem, and where its scratch memory lies.
#pragma once

#include "common/backward.h"
#include "common/rel_pos_tiles.h"
#include "common/sum_tiles.h"

namespace mvit {

constexpr int kRelPosLanes = 16;                             // threads of one query, 8 channels each
constexpr int kRelPosChannels = 8 * kRelPosLanes;            // of one block
constexpr int kRelPosGroups = kRelPosThreads / kRelPosLanes; // queries or strips of queries at a time
constexpr int kRelPosStrip = 4;                              // queries along w of one thread
constexpr int kRelPosPasses = 4;                             // strips one after the other
constexpr int kRelPosKeys = 8;                               // rows of a table whose gradient one block sums
constexpr int64_t kRelPosTableBlocks = 1024;                 // that keep every multiprocessor busy
constexpr int64_t kRelPosTableQueries = 8 * kRelPosGroups;   // of a part, at least
constexpr int64_t kRelPosTableSharedBytes = kRelPosThreads / 32 * kRelPosKeys * kRelPosChannels * 4;
static_assert(kRelPosChannels == kSumChannels, "the last kernel adds the channels of a slice");

// A table (queries, keys, D), whose keys are the entries of a row from `entry` on.
struct RelPosAxis {
    Parameter table;
    ParameterGradient gradient;
    int64_t queries, keys, entry;
    int64_t of_index; // queries of one (batch, head) with the same index
    int64_t parts;    // of those of all heads
    int64_t blocks, sum_blocks;
    float *sums; // [index][part][key][D]
};

struct RelPosBackwardPlan {
    RelPosBackwardProblem problem;
    RelPosAxis axis[3];
    int64_t strips, q_blocks; // strips of one (batch, head), the cls token's among them
    int64_t bytes;            // of scratch memory
};

static constexpr int64_t rel_pos_slices(const RelPosProblem &p) { return ceil_div(p.head_dim, kRelPosChannels); }

// Only sizes where scratch is null.
static inline RelPosBackwardPlan rel_pos_backward_plan(const RelPosBackwardProblem &problem, void *scratch) {
    RelPosBackwardPlan plan = {};
    plan.problem = problem;
    const RelPosProblem &p = problem.forward;
    const int64_t heads = p.batch * p.heads, slices = rel_pos_slices(p);
    const Parameter tables[3] = {p.table_t, p.table_h, p.table_w};
    const ParameterGradient gradients[3] = {problem.table_t, problem.table_h, problem.table_w};
    const int64_t queries[3] = {p.grid_q.t, p.grid_q.h, p.grid_q.w}, keys[3] = {p.grid_k.t, p.grid_k.h, p.grid_k.w};
    int64_t entry = 0;
    for (int i = 0; i < 3; ++i) {
        RelPosAxis &axis = plan.axis[i];
        axis.table = tables[i], axis.gradient = gradients[i];
        axis.queries = queries[i], axis.keys = keys[i], axis.entry = entry;
        axis.of_index = volume(p.grid_q) / queries[i];
        entry += keys[i];
        if (!axis.gradient.data)
            continue;
        const int64_t blocks = axis.queries * slices * ceil_div(axis.keys, kRelPosKeys);
        axis.parts = min(ceil_div(kRelPosTableBlocks, blocks), ceil_div(heads * axis.of_index, kRelPosTableQueries));
        axis.blocks = blocks * axis.parts;
        axis.sum_blocks = axis.queries * axis.keys * slices;
        if (scratch)
            axis.sums = reinterpret_cast<float *>(static_cast<char *>(scratch) + plan.bytes);
        plan.bytes += round_up(axis.queries * axis.parts * axis.keys * p.head_dim * 4, 256);
    }
    plan.strips = p.grid_q.t * p.grid_q.h * ceil_div(p.grid_q.w, kRelPosStrip) + (p.has_cls ? 1 : 0);
    plan.q_blocks = problem.q ? heads * slices * ceil_div(plan.strips, kRelPosGroups * kRelPosPasses) : 0;
    return plan;
}

} // namespace mvit
