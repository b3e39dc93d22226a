// How the CUDA decomposed_rel_pos kernel divides a problem.
#pragma once

#include "common/grid.h"

namespace mvit {

constexpr int kRelPosThreads = 128;

static constexpr int64_t rel_pos_queries(const RelPosProblem &p) { return (p.has_cls ? 1 : 0) + volume(p.grid_q); }
static constexpr int64_t rel_pos_results(const RelPosProblem &p) {
    return p.batch * p.heads * rel_pos_queries(p) * (p.grid_k.t + p.grid_k.h + p.grid_k.w);
}
static constexpr int64_t rel_pos_blocks(const RelPosProblem &p) { return ceil_div(rel_pos_results(p), kRelPosThreads); }

} // namespace mvit
