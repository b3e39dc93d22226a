// pooling_attention whose q is pooled, and whose relative-position rows are made, by the block that needs them: for
// inference, where nothing of the two is kept.
#pragma once

#include "common/attention_tiles.h"
#include "common/pool_tiles.h"

namespace mvit {

struct PooledQueryProblem {
    // Without q and its strides, and without rows; float16 or bfloat16.
    AttentionProblem attention;
    // Of one branch, q's, without `out`.
    PoolProblem pool;
    // As in RelPosProblem, for `attention.grid_k`; no table at all: no relative position.
    Parameter table_t, table_h, table_w;
};

static constexpr bool has_rel_pos(const PooledQueryProblem &p) {
    return p.table_t.data || p.table_h.data || p.table_w.data;
}

// Taps of the pooling's window, which lie beside the tile of queries.
constexpr int64_t kMaxQueryTaps = 144;

// nullptr, or why there is no kernel for a problem.
static constexpr const char *pooled_query_not_supported(const PooledQueryProblem &p) {
    const Size3 grid = p.attention.grid_k;
    return !attention_dim(p.attention.head_dim)                                  ? "no kernel for this head dim"
           : p.attention.dtype != DType::f16 && p.attention.dtype != DType::bf16 ? "no kernel for this dtype"
           : has_rel_pos(p) && grid.t + grid.h + grid.w > kMaxProductEntries
               ? "no kernel for this many relative-position entries"
           : volume(p.pool.branch[0].kernel) > kMaxQueryTaps ? "no kernel for a window this large"
                                                             : nullptr;
}

// What the kernel is told.
struct PooledQueryForward {
    AttentionForward attention;
    PooledQueryProblem problem;
};

// As for attention on pooled q, in one block for all keys: q is pooled once.
static constexpr PooledQueryForward pooled_query_forward(const PooledQueryProblem &p) {
    PooledQueryForward f = {{p.attention, 1, 0, nullptr}, p};
    f.attention.p.rel_pos = has_rel_pos(p) ? &p : nullptr; // what the heuristics look at; nobody reads it
    f.attention.keys_of_split = round_up(p.attention.keys, attention_tile(f.attention.p).keys);
    return f;
}

// The taps and the norm's vectors lie where k and v come later.
static constexpr int64_t pooled_query_shared_bytes(const PooledQueryForward &f) {
    const AttentionProblem &p = f.attention.p;
    const PoolBranch &b = f.problem.pool.branch[0];
    const int64_t parameters = ((b.mode == PoolMode::conv ? volume(b.kernel) : 0) + 2) * kPoolChannels * 4;
    const int64_t queries = attention_tile(p).rows * attention_dim(p.head_dim) * int64_t(size_of(p.dtype));
    return max(attention_shared_bytes(p), queries + parameters);
}

} // namespace mvit
