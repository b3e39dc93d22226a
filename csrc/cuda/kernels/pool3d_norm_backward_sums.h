// pool3d_norm's backward, last steps: sums over many tokens of x * dy per tap, and those of all parameters, which are
// added in a fixed order.
#pragma once

#include "common/pool_backward_tiles.h"
#include "cuda/kernels/block_ranges.h"
#include "cuda/kernels/sum_of_parts.h"

namespace mvit::cuda {

// One block: a line (kt, kh) of kPoolTaps taps along w, the channels of a slice, and a part of the lines of outputs.
// Each group of threads takes a line of outputs at a time, a thread 8 channels of it.
template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kPoolThreads, 3)
    pool3d_norm_backward_weight(const MVIT_GRID_CONSTANT PoolBackwardPlan plan) {
    const PoolProblem &p = plan.problem.forward;
    int64_t block = block_index();
    const int which = range_of_block(block, [&](int i) { return plan.branch[i].weight_blocks; });
    const PoolBranch &b = p.branch[which];
    const PoolBranchGradients &g = plan.problem.gradients[which];
    const PoolBackwardBranch &of = plan.branch[which];

    const int64_t first_channel = block % pool_slices(p) * kPoolChannels;
    block /= pool_slices(p);
    const int64_t blocks_of_line = ceil_div(b.kernel.w, kPoolTaps), lines = b.kernel.t * b.kernel.h;
    const int64_t kw = block % blocks_of_line * kPoolTaps;
    block /= blocks_of_line;
    const int64_t line = block % lines, kt = line / b.kernel.h, kh = line % b.kernel.h;
    block /= lines;
    const int64_t part = block % of.weight_parts, filter = block / of.weight_parts;
    const int64_t begin = part * of.of_group / of.weight_parts, end = (part + 1) * of.of_group / of.weight_parts;

    const int channels = int(min(p.head_dim - first_channel, kPoolChannels));
    const int group = thread_index() / kPoolLanes, first = thread_index() % kPoolLanes * 8;
    const int taps = int(min(kPoolTaps, b.kernel.w - kw));
    const int64_t channel = first_channel + first, outputs = pool_tokens(p, b.out_grid);
    const int64_t dy_stride = b.norm ? p.head_dim : g.stride_n, cls = p.has_cls ? 1 : 0;
    float sum[kPoolTaps][8] = {};
    for (int64_t i = begin + group; i < end && first < channels; i += kPoolGroups) {
        const int64_t oh = i % b.out_grid.h, ot = i / b.out_grid.h % b.out_grid.t;
        const int64_t token = i / b.out_grid.h / b.out_grid.t; // (batch, head), or the batch of one head's filter
        const int64_t batch = of.weight_groups > 1 ? token : token / p.heads;
        const int64_t head = of.weight_groups > 1 ? filter : token % p.heads;
        const int64_t t = ot * b.stride.t - b.padding.t + kt, h = oh * b.stride.h - b.padding.h + kh;
        if (t < 0 || t >= b.in.t || h < 0 || h >= b.in.h)
            continue;
        const char *const x =
            static_cast<const char *>(b.x) +
            (batch * b.stride_b + head * b.stride_h + (cls + (t * b.in.h + h) * b.in.w) * b.stride_n + channel) *
                Channels<T>::kBytes;
        const int64_t first_output = cls + (ot * b.out_grid.h + oh) * b.out_grid.w;
        const char *const dy =
            b.norm
                ? static_cast<const char *>(of.dy) +
                      (((batch * p.heads + head) * outputs + first_output) * p.head_dim + channel) * Channels<T>::kBytes
                : static_cast<const char *>(g.grad) +
                      (batch * g.stride_b + head * g.stride_h + first_output * g.stride_n + channel) *
                          Channels<T>::kBytes;
        for (int64_t ow = 0; ow < b.out_grid.w; ++ow) {
            float d[8];
            Channels<T>::load(dy + ow * dy_stride * Channels<T>::kBytes, d);
            const int64_t w = ow * b.stride.w - b.padding.w + kw;
            MVIT_UNROLL
            for (int k = 0; k < kPoolTaps; ++k) {
                if (k >= taps || w + k < 0 || w + k >= b.in.w)
                    continue;
                float value[8];
                Channels<T>::load(x + (w + k) * b.stride_n * Channels<T>::kBytes, value);
                MVIT_UNROLL
                for (int c = 0; c < 8; ++c)
                    sum[k][c] += value[c] * d[c];
            }
        }
    }
    // [group][tap][channel], then one thread per channel adds the groups.
    if (first < channels) {
        MVIT_UNROLL
        for (int k = 0; k < kPoolTaps; ++k) {
            MVIT_UNROLL
            for (int c = 0; c < 8; ++c)
                store_shared(Shared(((group * kPoolTaps + k) * kPoolChannels + first + c) * 4), sum[k][c]);
        }
    }
    sync_block();
    if (thread_index() >= channels)
        return;
    float *const to =
        of.weight_sums +
        ((filter * of.weight_parts + part) * volume(b.kernel) + (kt * b.kernel.h + kh) * b.kernel.w + kw) * p.head_dim;
    for (int k = 0; k < taps; ++k) {
        float total = 0;
        for (int i = 0; i < kPoolGroups; ++i)
            total += load_shared<float>(Shared(((i * kPoolTaps + k) * kPoolChannels + thread_index()) * 4));
        store_global(to + k * p.head_dim + first_channel + thread_index(), total);
    }
}

// One block: a tap of a filter, or a vector of the norm, for the channels of a slice.
template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kSumThreads, 4)
    pool3d_norm_backward_parameters(const MVIT_GRID_CONSTANT PoolBackwardPlan plan) {
    const PoolProblem &p = plan.problem.forward;
    int64_t block = block_index();
    const int which = range_of_block(block, [&](int i) { return plan.branch[i].parameter_blocks; });
    const PoolBranch &b = p.branch[which];
    const PoolBranchGradients &g = plan.problem.gradients[which];
    const PoolBackwardBranch &of = plan.branch[which];

    const int64_t first_channel = block % pool_slices(p) * kPoolChannels, row = block / pool_slices(p);
    const int channels = int(min(p.head_dim - first_channel, kPoolChannels));
    const int64_t taps = volume(b.kernel), filters = g.weight.data ? of.weight_groups : 0;
    if (row < filters * taps) {
        const int64_t filter = row / taps, tap = row % taps, stride = taps * p.head_dim;
        sum_of_parts(of.weight_sums + filter * of.weight_parts * stride + tap * p.head_dim + first_channel,
                     of.weight_parts, stride, channels, [&](int channel, float sum) {
                         const int64_t of_filter = filter * p.head_dim + first_channel + channel;
                         store_parameter(g.weight, of_filter * taps + tap, sum);
                     });
        return;
    }
    const int64_t vector = row - filters * taps;
    const ParameterGradient &to = vector == 0 ? g.norm_weight : g.norm_bias;
    if (to.data)
        sum_of_parts(of.norm_sums + vector * p.head_dim, of.output_tiles + of.output_strips, 2 * p.head_dim, channels,
                     [&](int channel, float sum) { store_parameter(to, channel, sum); });
}

} // namespace mvit::cuda
