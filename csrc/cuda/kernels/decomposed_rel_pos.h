// Decomposed relative position, forward: rows[b, h, i, e] = <q_i, row of a table>. One thread per result, neighbouring
// threads on neighbouring entries of one query: its q is a broadcast, the tables are shared by all heads and stay in
// L2.
//   global -> register  16 bytes (8 channels) at a time; sums of 8 products, then their sum, in float32: one long sum
//                       rounds up to twice as much as eager's
// Work: D FMA per result.
#pragma once

#include "common/rel_pos_tiles.h"
#include "cuda/primitives/channels.h"

namespace mvit::cuda {

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kRelPosThreads, 8) decomposed_rel_pos(const MVIT_GRID_CONSTANT RelPosProblem p) {
    const int64_t index = block_index() * kRelPosThreads + thread_index();
    if (index >= rel_pos_results(p))
        return;
    const int64_t entries = p.grid_k.t + p.grid_k.h + p.grid_k.w, queries = rel_pos_queries(p);
    int64_t entry = index % entries;
    const int64_t query = index / entries % queries;
    const int64_t head = index / entries / queries % p.heads, batch = index / entries / queries / p.heads;
    const int64_t position = query - (p.has_cls ? 1 : 0);
    const int64_t w = position % p.grid_q.w, h = position / p.grid_q.w % p.grid_q.h,
                  t = position / p.grid_q.w / p.grid_q.h;
    // (queries, keys, D) of one axis; the cls token, and an axis without a table, have zeros.
    Parameter table = p.table_t;
    int64_t row = t * p.grid_k.t + entry;
    if (entry >= p.grid_k.t + p.grid_k.h) {
        table = p.table_w;
        row = w * p.grid_k.w + entry - p.grid_k.t - p.grid_k.h;
    } else if (entry >= p.grid_k.t) {
        table = p.table_h;
        row = h * p.grid_k.h + entry - p.grid_k.t;
    }
    float sum = 0;
    if (position >= 0 && table.data) {
        const char *const q = static_cast<const char *>(p.q) +
                              (batch * p.q_stride_b + head * p.q_stride_h + query * p.q_stride_n) * Channels<T>::kBytes;
        for (int64_t channel = 0; channel < p.head_dim; channel += 8) {
            float x[8], y[8];
            Channels<T>::load(q + channel * Channels<T>::kBytes, x);
            load_parameters(table, row * p.head_dim + channel, y);
            float part = 0;
            MVIT_UNROLL
            for (int c = 0; c < 8; ++c)
                part += x[c] * y[c];
            sum += part;
        }
    }
    store_global(static_cast<float *>(p.rows) + index, sum);
}

} // namespace mvit::cuda
