// The gradients of k and v from the float32 sums of the parts of the queries, and those of q and of the rel-pos rows
// from the sums of the parts of the keys, added in order; that of q with dO (residual pooling). One thread: eight
// neighbouring channels of a key, of k or of v, or of a query; or an entry of a row.
#pragma once

#include "common/attention_backward_tiles.h"
#include "cuda/kernels/block_ranges.h"
#include "cuda/primitives/channels.h"

namespace mvit::cuda {

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kBackwardThreads, 6)
    attention_grad_sum(const MVIT_GRID_CONSTANT AttentionBackwardWork w) {
    const AttentionBackwardProblem &g = w.gradients;
    const AttentionProblem &p = g.forward;
    int64_t block = block_index();
    const auto of = GradSum(range_of_block(block, [&](int i) { return grad_sum_blocks(g, w.plan, GradSum(i)); }));
    const int64_t threads = grad_sum_threads(g, w.plan, of), thread = block * kBackwardThreads + thread_index();
    if (thread >= threads)
        return;
    if (of == GradSum::rel_pos) {
        const float *from = reinterpret_cast<const float *>(w.scratch + w.plan.rel_pos_sums) + thread;
        float total = load_global<float>(from);
        for (int64_t part = 1; part < w.plan.key_parts; ++part)
            total += load_global<float>(from += threads);
        store_global(static_cast<float *>(g.rel_pos) + thread, total);
        return;
    }
    const int64_t i = thread * 8;
    const auto add = [&](int64_t sums, int64_t parts, float factor, const float (&more)[8], void *to) {
        if (!to)
            return;
        const char *from = w.scratch + sums + i * 4;
        float total[8];
        Channels<f32>::load(from, total);
        for (int64_t part = 1; part < parts; ++part) {
            float sum[8];
            from += threads * 8 * 4;
            Channels<f32>::load(from, sum);
            MVIT_UNROLL
            for (int c = 0; c < 8; ++c)
                total[c] += sum[c];
        }
        MVIT_UNROLL
        for (int c = 0; c < 8; ++c)
            total[c] = total[c] * factor + more[c];
        Channels<T>::store(static_cast<char *>(to) + i * Channels<T>::kBytes, total);
    };
    float more[8] = {};
    if (of == GradSum::kv) {
        add(w.plan.k_sums, w.plan.parts, float(p.scale), more, g.k);
        add(w.plan.v_sums, w.plan.parts, 1, more, g.v);
        return;
    }
    const int64_t row = i / p.head_dim, query = row % p.queries, bh = row / p.queries;
    if (p.residual == Residual::all || (p.residual == Residual::no_cls && query >= (p.has_cls ? 1 : 0)))
        Channels<T>::load(
            static_cast<const char *>(g.grad_out) +
                (bh / p.heads * g.stride_b + bh % p.heads * g.stride_h + query * g.stride_n + i % p.head_dim) *
                    Channels<T>::kBytes,
            more);
    add(w.plan.q_sums, w.plan.key_parts, 1, more, g.q);
}

} // namespace mvit::cuda
