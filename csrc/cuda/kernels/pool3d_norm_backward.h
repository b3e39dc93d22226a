// Pooling and LayerNorm, backward. Four launches, each over 1 to 3 branches, and no atomics:
//   outputs     like the forward, whose pooled rows it makes again: LayerNorm's backward turns their gradient into
//               dy. Also the taps that a maximum came from, and sums for the norm's parameters, a block's in its own
//               place
//   inputs      each input gathers from the outputs that read it, ceil(kernel / stride) per axis; a thread makes 4
//               inputs a stride apart along w, which share their taps, so that a row of dy read once serves all
//   weight      sums of x * dy for 3 taps along w, over a part of the lines of outputs
//   parameters  the sums of all blocks, added in a fixed order
// All read and write 16 bytes (8 channels) a thread, and compute in float32. dy is rounded to the dtype of x, as
// eager PyTorch's is.
// Work per output: 6 * kt * kh * kw * D FLOP; from memory x, the gradient and dy, and again kt * kh times for the
// weight.
#pragma once

#include "common/pool_backward_tiles.h"
#include "cuda/kernels/pool_strip.h"

namespace mvit::cuda {

// Which branch a block belongs to; makes its number one within the branch.
template <int64_t PoolBackwardBranch::*kBlocks>
MVIT_DEVICE int branch_of_block(const PoolBackwardPlan &plan, int64_t &block) {
    int which = 0;
    while (block >= plan.branch[which].*kBlocks)
        block -= plan.branch[which++].*kBlocks;
    return which;
}

MVIT_DEVICE void store_winners(uint16_t *to, const int (&winner)[8]) {
    Vector16 v;
    MVIT_UNROLL
    for (int i = 0; i < 4; ++i)
        v.word[i] = uint32_t(winner[2 * i]) | uint32_t(winner[2 * i + 1]) << 16;
    store_global(to, v);
}

// What a thread of `outputs` does with one pooled row of a branch with a norm.
struct NormBackward {
    Shared weight;                  // the norm's, of this thread's channels
    float of_weight[8], of_bias[8]; // sums for the gradients of the norm's parameters

    // value and grad: the pooled row and the gradient of its norm, zeros where this thread has no channels. Makes
    // dy of value.
    MVIT_DEVICE void row(float (&value)[8], const float (&grad)[8], bool exists, bool has_channels, int64_t head_dim,
                         double eps) {
        const float factor = centre(value, has_channels, head_dim, eps);
        float weighted[8], along[8];
        MVIT_UNROLL
        for (int c = 0; c < 8; ++c) {
            value[c] *= factor;
            weighted[c] = has_channels ? grad[c] * load_shared<float>(weight + Shared(4 * c)) : 0;
            along[c] = weighted[c] * value[c];
            if (exists) {
                of_weight[c] += grad[c] * value[c];
                of_bias[c] += grad[c];
            }
        }
        const float mean = sum_of_token(weighted) / float(head_dim), slope = sum_of_token(along) / float(head_dim);
        MVIT_UNROLL
        for (int c = 0; c < 8; ++c)
            value[c] = (weighted[c] - mean - value[c] * slope) * factor;
    }
};

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kPoolThreads, 3)
    pool3d_norm_backward_outputs(const MVIT_GRID_CONSTANT PoolBackwardPlan plan) {
    const PoolProblem &p = plan.problem.forward;
    int64_t block = block_index();
    const int which = branch_of_block<&PoolBackwardBranch::output_blocks>(plan, block);
    const PoolBranch &b = p.branch[which];
    const PoolBranchGradients &g = plan.problem.gradients[which];
    const PoolBackwardBranch &of = plan.branch[which];

    const int64_t strips = pool_strips(p, b);
    const PoolPlace place(p, block, strips);
    const int taps = stage_taps(p, b, place), first = place.first, thread = thread_index();
    const Shared scale = Shared(taps * kPoolChannels * 4);
    if (thread < place.channels)
        store_shared(scale + Shared(4 * thread),
                     b.norm_weight.data ? load_parameter(b.norm_weight, place.first_channel + thread) : 1.0f);
    sync_block();

    const bool has_channels = place.has_channels();
    NormBackward norm = {scale + Shared(4 * first), {}, {}};
    const char *const x = place.tokens<T>(static_cast<const char *>(b.x), b.stride_b, b.stride_h);
    const char *const grad = place.tokens<T>(static_cast<const char *>(g.grad), g.stride_b, g.stride_h);
    const int64_t of_head = pool_tokens(p, b.out_grid) * p.head_dim;
    char *const dy = of.dy ? place.tokens<T>(static_cast<char *>(of.dy), p.heads * of_head, of_head) : nullptr;
    uint16_t *const winners = of.winners ? of.winners + place.offset(p.heads * of_head, of_head) : nullptr;
    MVIT_NO_UNROLL
    for (int pass = 0; pass < kPoolPasses; ++pass) {
        const int64_t index = place.first_strip + pass * kPoolGroups + place.group;
        const bool is_cls = p.has_cls && index == strips - 1, is_strip = index < strips && has_channels;
        float value[kPoolStrip][8] = {};
        int outputs = 0;
        int64_t token = 0;
        if (is_strip && is_cls) {
            Channels<T>::load(x, value[0]);
            outputs = 1;
        } else if (is_strip) {
            const PoolStrip strip(b, x, index, Shared(4 * first));
            outputs = strip.outputs;
            token = strip.token(b, p.has_cls);
            if (of.makes_winners) {
                int winner[kPoolStrip][8];
                pool_strip<T, PoolMode::max, true>(b, p.has_cls, strip, value, winner);
                MVIT_UNROLL
                for (int o = 0; o < kPoolStrip; ++o)
                    if (o < outputs)
                        store_winners(winners + (token + o) * p.head_dim, winner[o]);
            } else {
                pool_strip_of_mode<T>(b, p.has_cls, strip, value);
            }
        }
        if (!b.norm)
            continue;
        MVIT_UNROLL
        for (int o = 0; o < kPoolStrip; ++o) {
            float g_row[8] = {};
            if (o < outputs)
                Channels<T>::load(grad + (token + o) * g.stride_n * Channels<T>::kBytes, g_row);
            norm.row(value[o], g_row, o < outputs, has_channels, p.head_dim, b.norm_eps);
            if (of.makes_dy && o < outputs)
                Channels<T>::store(dy + (token + o) * p.head_dim * Channels<T>::kBytes, value[o]);
        }
    }

    if (!of.sums_norm)
        return;
    // [group][2][channel], then one thread per channel adds the groups.
    const Shared sums = scale + kPoolChannels * 4;
    if (has_channels) {
        MVIT_UNROLL
        for (int c = 0; c < 8; ++c) {
            store_shared(sums + Shared(((2 * place.group) * kPoolChannels + first + c) * 4), norm.of_weight[c]);
            store_shared(sums + Shared(((2 * place.group + 1) * kPoolChannels + first + c) * 4), norm.of_bias[c]);
        }
    }
    sync_block();
    if (thread >= place.channels)
        return;
    for (int row = 0; row < 2; ++row) {
        float sum = 0;
        for (int group = 0; group < kPoolGroups; ++group)
            sum += load_shared<float>(sums + Shared(((2 * group + row) * kPoolChannels + thread) * 4));
        store_global(of.norm_sums + (block * 2 + row) * p.head_dim + thread, sum);
    }
}

// The outputs that read coordinate i of an axis: output q - m by tap rest + m * stride, m in [first, last).
struct Readers {
    int64_t q, rest, first, last;
};
MVIT_DEVICE Readers readers_of(int64_t i, int64_t outputs, int64_t kernel, int64_t stride, int64_t padding) {
    const int64_t q = (i + padding) / stride, rest = (i + padding) % stride;
    const int64_t taps = rest < kernel ? ceil_div(kernel - rest, stride) : 0;
    const int64_t first = max(0, q - outputs + 1);
    return {q, rest, first, max(first, min(taps, q + 1))};
}

// dy of one (batch, head), this thread's channels, and the taps of those in shared memory.
struct PoolGather {
    const char *dy;
    int64_t stride; // between tokens of dy, in channels
    const uint16_t *winners;
    Shared taps;
};

// The gradient of kPoolStrip inputs, a stride apart along w, from input w on.
template <class T, PoolMode kMode>
MVIT_DEVICE void gather_strip(const PoolProblem &p, const PoolBranch &b, const PoolGather &from, int64_t t, int64_t h,
                              int64_t w, float (&value)[kPoolStrip][8]) {
    const Readers of_t = readers_of(t, b.out_grid.t, b.kernel.t, b.stride.t, b.padding.t);
    const Readers of_h = readers_of(h, b.out_grid.h, b.kernel.h, b.stride.h, b.padding.h);
    const int64_t q = (w + b.padding.w) / b.stride.w, rest = (w + b.padding.w) % b.stride.w;
    const int taps_w = int(rest < b.kernel.w ? ceil_div(b.kernel.w - rest, b.stride.w) : 0);
    for (int64_t mt = of_t.first; mt < of_t.last; ++mt)
        for (int64_t mh = of_h.first; mh < of_h.last; ++mh) {
            const int64_t row = (p.has_cls ? 1 : 0) + ((of_t.q - mt) * b.out_grid.h + of_h.q - mh) * b.out_grid.w;
            const int64_t line =
                ((of_t.rest + mt * b.stride.t) * b.kernel.h + of_h.rest + mh * b.stride.h) * b.kernel.w + rest;
            // Output q + column - taps_w + 1 reads input number i of the strip by tap rest + m * stride.
            for (int column = 0; column < kPoolStrip - 1 + taps_w; ++column) {
                const int64_t output = q + column - taps_w + 1;
                if (output < 0 || output >= b.out_grid.w)
                    continue;
                float dy[8];
                Channels<T>::load(from.dy + (row + output) * from.stride * Channels<T>::kBytes, dy);
                Vector16 winners;
                if constexpr (kMode == PoolMode::max)
                    winners = load_global<Vector16>(from.winners + (row + output) * p.head_dim);
                MVIT_UNROLL
                for (int i = 0; i < kPoolStrip; ++i) {
                    const int m = i + taps_w - 1 - column;
                    if (m < 0 || m >= taps_w)
                        continue;
                    const int64_t tap = line + m * b.stride.w;
                    if constexpr (kMode == PoolMode::conv) {
                        const Shared weight = from.taps + Shared(tap * kPoolChannels * 4);
                        const Float4 low = load_shared<Float4>(weight), high = load_shared<Float4>(weight + 16);
                        MVIT_UNROLL
                        for (int c = 0; c < 4; ++c) {
                            value[i][c] += low.value[c] * dy[c];
                            value[i][4 + c] += high.value[c] * dy[4 + c];
                        }
                    } else {
                        MVIT_UNROLL
                        for (int c = 0; c < 8; ++c) {
                            const bool won = kMode == PoolMode::avg ||
                                             (winners.word[c / 2] >> (c % 2 * 16) & 0xffffu) == uint32_t(tap);
                            value[i][c] += won ? dy[c] : 0.0f;
                        }
                    }
                }
            }
        }
    if constexpr (kMode == PoolMode::avg) {
        const float count = float(volume(b.kernel));
        MVIT_UNROLL
        for (int i = 0; i < kPoolStrip; ++i) {
            MVIT_UNROLL
            for (int c = 0; c < 8; ++c)
                value[i][c] /= count;
        }
    }
}

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kPoolThreads, 4)
    pool3d_norm_backward_inputs(const MVIT_GRID_CONSTANT PoolBackwardPlan plan) {
    const PoolProblem &p = plan.problem.forward;
    int64_t block = block_index();
    const int which = branch_of_block<&PoolBackwardBranch::input_blocks>(plan, block);
    const PoolBranch &b = p.branch[which];
    const PoolBranchGradients &g = plan.problem.gradients[which];
    const PoolBackwardBranch &of = plan.branch[which];

    const int64_t strips = pool_input_strips(p, b), strips_of_row = pool_input_strips_of_row(b);
    const PoolPlace place(p, block, strips);
    stage_taps(p, b, place);
    sync_block();
    if (!place.has_channels())
        return;

    const int64_t of_head = pool_tokens(p, b.out_grid) * p.head_dim;
    PoolGather from;
    from.dy = b.norm ? place.tokens<T>(static_cast<const char *>(of.dy), p.heads * of_head, of_head)
                     : place.tokens<T>(static_cast<const char *>(g.grad), g.stride_b, g.stride_h);
    from.stride = b.norm ? p.head_dim : g.stride_n;
    from.winners = of.winners ? of.winners + place.offset(p.heads * of_head, of_head) : nullptr;
    from.taps = Shared(4 * place.first);
    char *const to = place.tokens<T>(static_cast<char *>(g.x), g.x_stride_b, g.x_stride_h);
    for (int pass = 0; pass < kPoolPasses; ++pass) {
        const int64_t index = place.first_strip + pass * kPoolGroups + place.group;
        if (index >= strips)
            return;
        float value[kPoolStrip][8] = {};
        if (p.has_cls && index == strips - 1) {
            Channels<T>::load(from.dy, value[0]);
            Channels<T>::store(to, value[0]);
            return;
        }
        const int64_t row = index / strips_of_row, t = row / b.in.h, h = row % b.in.h;
        const int64_t in_row = index % strips_of_row;
        const int64_t w = in_row / b.stride.w * kPoolStrip * b.stride.w + in_row % b.stride.w;
        if (w >= b.in.w)
            continue;
        if (b.mode == PoolMode::conv)
            gather_strip<T, PoolMode::conv>(p, b, from, t, h, w, value);
        else if (b.mode == PoolMode::avg)
            gather_strip<T, PoolMode::avg>(p, b, from, t, h, w, value);
        else
            gather_strip<T, PoolMode::max>(p, b, from, t, h, w, value);
        const int64_t token = (p.has_cls ? 1 : 0) + row * b.in.w;
        MVIT_UNROLL
        for (int i = 0; i < kPoolStrip; ++i) {
            const int64_t at = w + i * b.stride.w;
            if (at < b.in.w)
                Channels<T>::store(to + (token + at) * g.x_stride_n * Channels<T>::kBytes, value[i]);
        }
    }
}

} // namespace mvit::cuda
