// The gradients of k and v from the float32 sums of the parts of the queries, added in order. One thread: eight
// neighbouring channels of a key, of k or of v.
#pragma once

#include "common/attention_backward_tiles.h"
#include "cuda/primitives/channels.h"

namespace mvit::cuda {

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kBackwardThreads, 8)
    attention_grad_sum(const MVIT_GRID_CONSTANT AttentionBackwardWork w) {
    const AttentionBackwardProblem &g = w.gradients;
    const int64_t numbers = grad_sum_threads(g) * 8; // of one part
    const int64_t i = (block_index() * kBackwardThreads + thread_index()) * 8;
    if (i >= numbers)
        return;
    const auto add = [&](int64_t sums, float factor, void *to) {
        if (!to)
            return;
        const char *from = w.scratch + sums + i * 4;
        float total[8];
        Channels<f32>::load(from, total);
        for (int64_t part = 1; part < w.plan.parts; ++part) {
            float more[8];
            from += numbers * 4;
            Channels<f32>::load(from, more);
            MVIT_UNROLL
            for (int c = 0; c < 8; ++c)
                total[c] += more[c];
        }
        MVIT_UNROLL
        for (int c = 0; c < 8; ++c)
            total[c] *= factor;
        Channels<T>::store(static_cast<char *>(to) + i * Channels<T>::kBytes, total);
    };
    add(w.plan.k_sums, float(g.forward.scale), g.k);
    add(w.plan.v_sums, 1, g.v);
}

} // namespace mvit::cuda
