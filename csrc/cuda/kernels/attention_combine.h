// Attention with keys split among blocks, second step: adds the parts up, in the order of the keys.
//   out = sum_s e^(top_s - top) o_s / sum_s e^(top_s - top) sum_s  (+ q),  top the largest top_s
// One thread for 8 channels of a row. Work: splits * D FMA per row; traffic 4 * splits * (D + 2) bytes in, one row out.
#pragma once

#include "cuda/kernels/attention_block.h"

namespace mvit::cuda {

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kCombineThreads, 8) attention_combine(const MVIT_GRID_CONSTANT AttentionForward f) {
    const AttentionProblem &p = f.p;
    const int64_t rows = attention_rows(p), chunks = p.head_dim / 8;
    const int64_t index = block_index() * kCombineThreads + thread_index();
    const int64_t row = index / chunks, channel = index % chunks * 8;
    if (row >= rows)
        return;
    const float *const pairs = f.parts + f.splits * rows * p.head_dim;
    float top = negative_infinity();
    for (int64_t split = 0; split < f.splits; ++split)
        top = maximum(top, load_global<float>(pairs + 2 * (split * rows + row)));
    const float shift = top == negative_infinity() ? 0 : top; // a row of -inf alone: e^(-inf - 0) is 0
    float value[8] = {}, sum = 0;
    for (int64_t split = 0; split < f.splits; ++split) {
        const Float2 pair = load_global<Float2>(pairs + 2 * (split * rows + row));
        const float weight = fast_exp2((pair.value[0] - shift) * kLog2E);
        float part[8];
        Channels<f32>::load(f.parts + (split * rows + row) * p.head_dim + channel, part);
        sum += weight * pair.value[1];
        MVIT_UNROLL
        for (int c = 0; c < 8; ++c)
            value[c] += weight * part[c];
    }
    const int64_t query = row % p.queries, head = row / p.queries % p.heads, batch = row / p.queries / p.heads;
    float residual[8] = {};
    if (p.residual == Residual::all || (p.residual == Residual::no_cls && query >= (p.has_cls ? 1 : 0)))
        Channels<T>::load(static_cast<const char *>(p.q) +
                              (batch * p.q_stride_b + head * p.q_stride_h + query * p.q_stride_n + channel) *
                                  Channels<T>::kBytes,
                          residual);
    const float inverse = 1 / sum;
    MVIT_UNROLL
    for (int c = 0; c < 8; ++c)
        value[c] = value[c] * inverse + residual[c];
    Channels<T>::store(static_cast<char *>(p.out) +
                           (((batch * p.queries + query) * p.heads + head) * p.head_dim + channel) *
                               Channels<T>::kBytes,
                       value);
    if (channel == 0)
        store_global(static_cast<float *>(p.lse) + row, top + fast_log2(sum) * kLn2);
}

} // namespace mvit::cuda
