// pool3d_norm's backward, second step: the gradient of x from dy. At stride 1 it is a pooling of dy by the flipped
// taps, in tiles. Else each input gathers from the outputs that read it, ceil(kernel / stride) per axis; a thread makes
// 4 inputs a stride apart along w, which share their taps, so that a row of dy read once serves all.
//   global -> shared, register   16 bytes (8 channels) a thread, sums in float32, rounded once
#pragma once

#include "common/pool_backward_tiles.h"
#include "cuda/kernels/block_ranges.h"
#include "cuda/kernels/pool_tile.h"

namespace mvit::cuda {

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

// A stride of 1.
template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kPoolTileThreads, 2)
    pool3d_norm_backward_inputs(const MVIT_GRID_CONSTANT PoolTransposedPlan transposed) {
    const PoolPlan &plan = transposed.plan;
    const PoolProblem &p = plan.problem;
    int64_t block = block_index();
    const int which = range_of_block(block, [&](int i) { return plan.tiling[i].blocks; });
    const PoolBranch &b = p.branch[which];
    const TilePlace place = TilePlace::of_block(p, b, plan.tiling[which], block);
    const int first = thread_index() % kPoolLanes * 8;
    char *const to =
        static_cast<char *>(b.out) + (place.batch * transposed.stride_b[which] +
                                      place.head * transposed.stride_h[which] + place.first_channel + first) *
                                         Channels<T>::kBytes;
    pool_tile_rows<T>(p, b, plan.tiling[which], place, [&](int64_t token, bool exists, float (&value)[8]) {
        if (exists && first < place.channels)
            Channels<T>::store(to + token * transposed.stride_n[which] * Channels<T>::kBytes, value);
    });
}

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kPoolThreads, 4)
    pool3d_norm_backward_input_strips(const MVIT_GRID_CONSTANT PoolBackwardPlan plan) {
    const PoolProblem &p = plan.problem.forward;
    int64_t block = block_index();
    const int which = range_of_block(block, [&](int i) { return plan.branch[i].input_strips; });
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
