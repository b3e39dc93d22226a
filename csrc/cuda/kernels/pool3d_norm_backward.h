// Pooling and LayerNorm, backward. Four steps, each over 1 to 3 branches, and no atomics:
//   outputs     like the forward, whose pooled rows it makes again: LayerNorm's backward turns their gradient into
//               dy. Also the taps that a maximum came from, and sums for the norm's parameters, a block's in its own
//               place. Tiles in 16 bits where the windows fit, else strips
//   inputs      at stride 1 a pooling of dy by the flipped taps, in tiles. Else each input gathers from the outputs
//               that read it, ceil(kernel / stride) per axis; a thread makes 4 inputs a stride apart along w, which
//               share their taps, so that a row of dy read once serves all
//   weight      sums of x * dy for 3 taps along w, over a part of the lines of outputs
//   parameters  the sums of all blocks, added in a fixed order
// All read and write 16 bytes (8 channels) a thread, and compute in float32. dy is rounded to the dtype of x, as
// eager PyTorch's is.
// Work per output: 6 * kt * kh * kw * D FLOP.
#pragma once

#include "common/pool_backward_tiles.h"
#include "cuda/kernels/pool_tile.h"

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

// LayerNorm's backward for the rows of a block.
struct NormBackward {
    const PoolBackwardBranch &of;
    const Norm &norm;
    Shared sums; // [group][2][channel]: for the gradients of the norm's weight and bias, of the rows of a group
    int group, first;
    bool has_channels;

    MVIT_DEVICE Shared sum(int group, int vector, int channel) const {
        return sums + Shared(((2 * group + vector) * kPoolChannels + channel) * 4);
    }

    MVIT_DEVICE void start() const {
        if (of.sums_norm && has_channels) {
            MVIT_UNROLL
            for (int i = 0; i < 4; ++i)
                store_shared(sum(group, i / 2, first + i % 2 * 4), Float4{});
        }
    }

    // value and grad: the pooled row and the gradient of its norm, zeros where this thread has no channels. Makes dy
    // of value. Every lane of the warp takes part.
    MVIT_DEVICE void row(float (&value)[8], float (&grad)[8], bool exists, int64_t head_dim) const {
        const float factor = centre(value, has_channels, head_dim, norm.b.norm_eps);
        MVIT_UNROLL
        for (int c = 0; c < 8; ++c)
            value[c] *= factor;
        if (of.sums_norm && exists && has_channels) {
            MVIT_UNROLL
            for (int i = 0; i < 4; ++i) {
                const Shared at = sum(group, i / 2, first + i % 2 * 4);
                Float4 total = load_shared<Float4>(at);
                MVIT_UNROLL
                for (int c = 0; c < 4; ++c)
                    total.value[c] += grad[i % 2 * 4 + c] * (i < 2 ? value[i % 2 * 4 + c] : 1.0f);
                store_shared(at, total);
            }
        }
        float sum = 0, along = 0;
        MVIT_UNROLL
        for (int c = 0; c < 8; ++c) {
            grad[c] = has_channels ? grad[c] * load_shared<float>(norm.vectors + Shared(4 * (first + c))) : 0;
            sum += grad[c];
            along += grad[c] * value[c];
        }
        const float mean = sum_of_token(sum) / float(head_dim), slope = sum_of_token(along) / float(head_dim);
        MVIT_UNROLL
        for (int c = 0; c < 8; ++c)
            value[c] = (grad[c] - mean - value[c] * slope) * factor;
    }

    // The sums of all groups, to where those of this block belong.
    MVIT_DEVICE void finish(int groups, int channels, int64_t head_dim, int64_t block) const {
        if (!of.sums_norm)
            return;
        sync_block();
        const int channel = thread_index();
        if (channel >= channels)
            return;
        for (int vector = 0; vector < 2; ++vector) {
            float total = 0;
            for (int i = 0; i < groups; ++i)
                total += load_shared<float>(sum(i, vector, channel));
            store_global(of.norm_sums + (block * 2 + vector) * head_dim + channel, total);
        }
    }
};

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kPoolTileThreads, 2)
    pool3d_norm_backward_outputs(const MVIT_GRID_CONSTANT PoolBackwardPlan plan) {
    const PoolProblem &p = plan.problem.forward;
    int64_t block = block_index();
    const int which = branch_of_block<&PoolBackwardBranch::output_tiles>(plan, block);
    const PoolBranch &b = p.branch[which];
    const PoolBranchGradients &g = plan.problem.gradients[which];
    const PoolBackwardBranch &of = plan.branch[which];

    const TilePlace place = TilePlace::of_block(p, b, of.tiling, block);
    const Norm norm = {b, Shared(2 * of.tiling.frame_bytes + of.tiling.tap_bytes + of.tiling.staging_bytes)};
    norm.stage(place.first_channel, place.channels);
    const int first = thread_index() % kPoolLanes * 8;
    const NormBackward backward = {
        of, norm, norm.vectors + Norm::kSharedBytes, thread_index() / kPoolLanes, first, first < place.channels};
    backward.start();
    const char *const grad =
        static_cast<const char *>(g.grad) +
        (place.batch * g.stride_b + place.head * g.stride_h + place.first_channel + first) * Channels<T>::kBytes;
    const int64_t of_head = (place.batch * p.heads + place.head) * pool_tokens(p, b.out_grid) * p.head_dim;
    char *const dy = of.makes_dy
                         ? static_cast<char *>(of.dy) + (of_head + place.first_channel + first) * Channels<T>::kBytes
                         : nullptr;
    const auto row = [&](int64_t token, bool exists, float (&value)[8]) {
        exists = exists && backward.has_channels;
        float of_row[8] = {};
        if (exists)
            Channels<T>::load(grad + token * g.stride_n * Channels<T>::kBytes, of_row);
        backward.row(value, of_row, exists, p.head_dim);
        if (dy && exists)
            Channels<T>::store(dy + token * p.head_dim * Channels<T>::kBytes, value);
    };
    // First, so that what it needs takes no registers later.
    if (p.has_cls && place.first) {
        sync_block();
        const bool is_row = thread_index() < kPoolLanes;
        float value[8] = {};
        if (is_row && backward.has_channels)
            Channels<T>::load(static_cast<const char *>(b.x) +
                                  (place.batch * b.stride_b + place.head * b.stride_h + place.first_channel + first) *
                                      Channels<T>::kBytes,
                              value);
        row(0, is_row, value);
    }
    pool_tile_of_mode<T>(p, b, of.tiling, place, [&](int frame, int line, int column, bool exists, float (&value)[8]) {
        row(place.token(b, p.has_cls, frame, line, column), exists, value);
    });
    backward.finish(kPoolTileGroups, place.channels, p.head_dim, block);
}

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kPoolThreads, 3)
    pool3d_norm_backward_output_strips(const MVIT_GRID_CONSTANT PoolBackwardPlan plan) {
    const PoolProblem &p = plan.problem.forward;
    int64_t block = block_index();
    const int which = branch_of_block<&PoolBackwardBranch::output_strips>(plan, block);
    const PoolBranch &b = p.branch[which];
    const PoolBranchGradients &g = plan.problem.gradients[which];
    const PoolBackwardBranch &of = plan.branch[which];

    const int64_t strips = pool_strips(p, b);
    const PoolPlace place(p, block, strips);
    const bool has_channels = place.has_channels();
    const Norm norm = {b, Shared(stage_taps(p, b, place) * kPoolChannels * 4)};
    norm.stage(place.first_channel, place.channels);
    const NormBackward backward = {of, norm, norm.vectors + Norm::kSharedBytes, place.group, place.first, has_channels};
    backward.start();
    sync_block();

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
            const PoolStrip strip(b, x, index, Shared(4 * place.first));
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
            float of_row[8] = {};
            if (o < outputs)
                Channels<T>::load(grad + (token + o) * g.stride_n * Channels<T>::kBytes, of_row);
            backward.row(value[o], of_row, o < outputs, p.head_dim);
            if (of.makes_dy && o < outputs)
                Channels<T>::store(dy + (token + o) * p.head_dim * Channels<T>::kBytes, value[o]);
        }
    }
    backward.finish(kPoolGroups, place.channels, p.head_dim, block);
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

// A stride of 1.
template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kPoolTileThreads, 2)
    pool3d_norm_backward_inputs(const MVIT_GRID_CONSTANT PoolTransposedPlan transposed) {
    const PoolPlan &plan = transposed.plan;
    const PoolProblem &p = plan.problem;
    int64_t block = block_index();
    int which = 0;
    while (block >= plan.tiling[which].blocks)
        block -= plan.tiling[which++].blocks;
    const PoolBranch &b = p.branch[which];
    const TilePlace place = TilePlace::of_block(p, b, plan.tiling[which], block);
    const int first = thread_index() % kPoolLanes * 8;
    const int64_t channel = place.first_channel + first;
    char *const to = static_cast<char *>(b.out) +
                     (place.batch * transposed.stride_b[which] + place.head * transposed.stride_h[which] + channel) *
                         Channels<T>::kBytes;
    const auto store = [&](int64_t token, bool exists, const float (&value)[8]) {
        if (exists && first < place.channels)
            Channels<T>::store(to + token * transposed.stride_n[which] * Channels<T>::kBytes, value);
    };
    if (p.has_cls && place.first && thread_index() < kPoolLanes && first < place.channels) {
        float value[8];
        Channels<T>::load(static_cast<const char *>(b.x) +
                              (place.batch * b.stride_b + place.head * b.stride_h + channel) * Channels<T>::kBytes,
                          value);
        store(0, true, value);
    }
    pool_tile_of_mode<T>(p, b, plan.tiling[which], place,
                         [&](int frame, int line, int column, bool exists, float (&value)[8]) {
                             store(place.token(b, p.has_cls, frame, line, column), exists, value);
                         });
}

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kPoolThreads, 4)
    pool3d_norm_backward_input_strips(const MVIT_GRID_CONSTANT PoolBackwardPlan plan) {
    const PoolProblem &p = plan.problem.forward;
    int64_t block = block_index();
    const int which = branch_of_block<&PoolBackwardBranch::input_strips>(plan, block);
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
