// Decomposed relative position, backward. Three launches and no atomics:
//   q       dq_i = the entries of i's row times the rows of the three tables. 16 threads of 8 channels make 4
//           queries along w together, which share their rows of the tables for t and h
//   tables  the gradient of a row of a table: the sum over the queries with its index of entry * q. A block sums 8
//           rows of one index over a part of those queries
//   sums    the parts, added in a fixed order
// Work per query: 4 * D * (Kt + Kh + Kw) FLOP. The tables are shared by all heads and stay in L2.
#pragma once

#include "common/rel_pos_backward_tiles.h"
#include "cuda/kernels/block_ranges.h"
#include "cuda/kernels/sum_of_parts.h"

namespace mvit::cuda {

MVIT_DEVICE const float *rel_pos_grad(const RelPosBackwardProblem &g, int64_t batch, int64_t head, int64_t query) {
    return static_cast<const float *>(g.grad) + batch * g.stride_b + head * g.stride_h + query * g.stride_n;
}

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kRelPosThreads, 5)
    decomposed_rel_pos_backward_q(const MVIT_GRID_CONSTANT RelPosBackwardPlan plan) {
    const RelPosBackwardProblem &g = plan.problem;
    const RelPosProblem &p = g.forward;
    const int64_t block = block_index(), blocks_of_head = ceil_div(plan.strips, kRelPosGroups * kRelPosPasses);
    const int64_t slice = block / blocks_of_head % rel_pos_slices(p),
                  of_head = block / blocks_of_head / rel_pos_slices(p);
    const int64_t head = of_head % p.heads, batch = of_head / p.heads;
    const int64_t channel = slice * kRelPosChannels + thread_index() % kRelPosLanes * 8;
    if (channel >= p.head_dim)
        return;
    const int64_t first = block % blocks_of_head * kRelPosGroups * kRelPosPasses + thread_index() / kRelPosLanes;
    const int64_t strips_of_row = ceil_div(p.grid_q.w, kRelPosStrip);
    char *const q =
        static_cast<char *>(g.q) + (of_head * rel_pos_queries(p) * p.head_dim + channel) * Channels<T>::kBytes;
    for (int pass = 0; pass < kRelPosPasses; ++pass) {
        const int64_t index = first + pass * kRelPosGroups;
        if (index >= plan.strips)
            return;
        float sum[kRelPosStrip][8] = {};
        if (p.has_cls && index == plan.strips - 1) {
            Channels<T>::store(q, sum[0]);
            return;
        }
        const int64_t row = index / strips_of_row, w = index % strips_of_row * kRelPosStrip;
        const int64_t query = (p.has_cls ? 1 : 0) + row * p.grid_q.w + w;
        const int count = int(min(p.grid_q.w - w, kRelPosStrip));
        const float *const grad = rel_pos_grad(g, batch, head, query);
        for (int i = 0; i < 2; ++i) {
            const RelPosAxis &axis = plan.axis[i];
            if (!axis.table.data)
                continue;
            const int64_t at = i == 0 ? row / p.grid_q.h : row % p.grid_q.h;
            for (int64_t key = 0; key < axis.keys; ++key) {
                float table[8];
                load_parameters(axis.table, (at * axis.keys + key) * p.head_dim + channel, table);
                MVIT_UNROLL
                for (int n = 0; n < kRelPosStrip; ++n) {
                    if (n >= count)
                        continue;
                    const float entry = load_global<float>(grad + n * g.stride_n + axis.entry + key);
                    MVIT_UNROLL
                    for (int c = 0; c < 8; ++c)
                        sum[n][c] += entry * table[c];
                }
            }
        }
        const RelPosAxis &axis = plan.axis[2];
        if (axis.table.data)
            for (int64_t key = 0; key < axis.keys; ++key) {
                MVIT_UNROLL
                for (int n = 0; n < kRelPosStrip; ++n) {
                    if (n >= count)
                        continue;
                    float table[8];
                    load_parameters(axis.table, ((w + n) * axis.keys + key) * p.head_dim + channel, table);
                    const float entry = load_global<float>(grad + n * g.stride_n + axis.entry + key);
                    MVIT_UNROLL
                    for (int c = 0; c < 8; ++c)
                        sum[n][c] += entry * table[c];
                }
            }
        MVIT_UNROLL
        for (int n = 0; n < kRelPosStrip; ++n)
            if (n < count)
                Channels<T>::store(q + (query + n) * p.head_dim * Channels<T>::kBytes, sum[n]);
    }
}

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kRelPosThreads, 4)
    decomposed_rel_pos_backward_tables(const MVIT_GRID_CONSTANT RelPosBackwardPlan plan) {
    const RelPosBackwardProblem &g = plan.problem;
    const RelPosProblem &p = g.forward;
    int64_t block = block_index();
    const int which = range_of_block(block, [&](int i) { return plan.axis[i].blocks; });
    const RelPosAxis &axis = plan.axis[which];
    const int64_t first_channel = block % rel_pos_slices(p) * kRelPosChannels;
    block /= rel_pos_slices(p);
    const int64_t first_key = block % ceil_div(axis.keys, kRelPosKeys) * kRelPosKeys;
    block /= ceil_div(axis.keys, kRelPosKeys);
    const int64_t part = block % axis.parts, index = block / axis.parts;
    const int64_t all = p.batch * p.heads * axis.of_index;
    const int64_t begin = part * all / axis.parts, end = (part + 1) * all / axis.parts;
    const int keys = int(min(axis.keys - first_key, kRelPosKeys));
    const int channels = int(min(p.head_dim - first_channel, kRelPosChannels));
    const int first = thread_index() % kRelPosLanes * 8;

    float sum[kRelPosKeys][8] = {};
    for (int64_t i = begin + thread_index() / kRelPosLanes; i < end && first < channels; i += kRelPosGroups) {
        const int64_t of_head = i / axis.of_index, n = i % axis.of_index; // the n-th query with this index
        const int64_t width = p.grid_q.w, area = p.grid_q.h * width;
        const int64_t position = which == 0   ? index * area + n
                                 : which == 1 ? n / width * area + index * width + n % width
                                              : n * width + index;
        const int64_t query = (p.has_cls ? 1 : 0) + position, batch = of_head / p.heads, head = of_head % p.heads;
        float q[8];
        Channels<T>::load(static_cast<const char *>(p.q) + (batch * p.q_stride_b + head * p.q_stride_h +
                                                            query * p.q_stride_n + first_channel + first) *
                                                               Channels<T>::kBytes,
                          q);
        const float *const grad = rel_pos_grad(g, batch, head, query) + axis.entry + first_key;
        MVIT_UNROLL
        for (int key = 0; key < kRelPosKeys; ++key) {
            if (key >= keys)
                continue;
            const float entry = load_global<float>(grad + key);
            MVIT_UNROLL
            for (int c = 0; c < 8; ++c)
                sum[key][c] += entry * q[c];
        }
    }
    // The two queries of a warp, then [warp][key][channel], then one thread per channel adds the warps.
    static_assert(kRelPosLanes == 16, "two queries in a warp");
    MVIT_UNROLL
    for (int key = 0; key < kRelPosKeys; ++key) {
        MVIT_UNROLL
        for (int c = 0; c < 8; ++c) {
            const float both = sum[key][c] + shuffle_xor(sum[key][c], 16);
            if (lane_index() < 16)
                store_shared(Shared(((warp_index() * kRelPosKeys + key) * kRelPosChannels + first + c) * 4), both);
        }
    }
    sync_block();
    if (thread_index() >= channels)
        return;
    float *const to =
        axis.sums + ((index * axis.parts + part) * axis.keys + first_key) * p.head_dim + first_channel + thread_index();
    for (int key = 0; key < keys; ++key) {
        float total = 0;
        for (int warp = 0; warp < kRelPosThreads / kWarp; ++warp)
            total += load_shared<float>(Shared(((warp * kRelPosKeys + key) * kRelPosChannels + thread_index()) * 4));
        store_global(to + key * p.head_dim, total);
    }
}

// One block: a row of a table, for the channels of a slice.
template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kSumThreads, 4)
    decomposed_rel_pos_backward_sums(const MVIT_GRID_CONSTANT RelPosBackwardPlan plan) {
    const RelPosProblem &p = plan.problem.forward;
    int64_t block = block_index();
    const RelPosAxis &axis = plan.axis[range_of_block(block, [&](int i) { return plan.axis[i].sum_blocks; })];
    const int64_t first_channel = block % rel_pos_slices(p) * kRelPosChannels, row = block / rel_pos_slices(p);
    const int64_t index = row / axis.keys, key = row % axis.keys;
    sum_of_parts(axis.sums + (index * axis.parts * axis.keys + key) * p.head_dim + first_channel, axis.parts,
                 axis.keys * p.head_dim, int(min(p.head_dim - first_channel, kRelPosChannels)),
                 [&](int channel, float sum) {
                     store_parameter(axis.gradient, row * p.head_dim + first_channel + channel, sum);
                 });
}

} // namespace mvit::cuda
