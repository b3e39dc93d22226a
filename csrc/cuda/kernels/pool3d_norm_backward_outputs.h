// pool3d_norm's backward, first step: dy, the gradient before the norm. Pooled rows are made again as in the forward,
// and LayerNorm's backward turns their incoming gradient into dy. Also the taps that a maximum came from, and sums for
// the norm's parameters, a block's in its own place: no atomics. Tiles in 16 bits where the windows fit, else strips.
//   global -> shared, register   16 bytes (8 channels) a thread, float32 from there on
//   epilogue                     dy, rounded to the dtype of x, as eager PyTorch's is
#pragma once

#include "common/pool_backward_tiles.h"
#include "cuda/kernels/block_ranges.h"
#include "cuda/kernels/pool_tile.h"

namespace mvit::cuda {

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
    const int which = range_of_block(block, [&](int i) { return plan.branch[i].output_tiles; });
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
    pool_tile_rows<T>(p, b, of.tiling, place, [&](int64_t token, bool exists, float (&value)[8]) {
        exists = exists && backward.has_channels;
        float of_row[8] = {};
        if (exists)
            Channels<T>::load(grad + token * g.stride_n * Channels<T>::kBytes, of_row);
        backward.row(value, of_row, exists, p.head_dim);
        if (dy && exists)
            Channels<T>::store(dy + token * p.head_dim * Channels<T>::kBytes, value);
    });
    backward.finish(kPoolTileGroups, place.channels, p.head_dim, block);
}

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kPoolThreads, 3)
    pool3d_norm_backward_output_strips(const MVIT_GRID_CONSTANT PoolBackwardPlan plan) {
    const PoolProblem &p = plan.problem.forward;
    int64_t block = block_index();
    const int which = range_of_block(block, [&](int i) { return plan.branch[i].output_strips; });
    const PoolBranch &b = p.branch[which];
    const PoolBranchGradients &g = plan.problem.gradients[which];
    const PoolBackwardBranch &of = plan.branch[which];

    const int64_t strips = pool_strips(p, b);
    const PoolPlace place(p, block, strips);
    const Norm norm = {b, Shared(stage_taps(p, b, place) * kPoolChannels * 4)};
    norm.stage(place.first_channel, place.channels);
    const NormBackward backward = {of,          norm,        norm.vectors + Norm::kSharedBytes,
                                   place.group, place.first, place.has_channels()};
    backward.start();
    sync_block();

    const char *const grad = place.tokens<T>(static_cast<const char *>(g.grad), g.stride_b, g.stride_h);
    const int64_t of_head = pool_tokens(p, b.out_grid) * p.head_dim;
    char *const dy = of.dy ? place.tokens<T>(static_cast<char *>(of.dy), p.heads * of_head, of_head) : nullptr;
    uint16_t *const winners = of.winners ? of.winners + place.offset(p.heads * of_head, of_head) : nullptr;
    pool_strips_of_block<T>(
        p, b, place, strips,
        [&](const PoolStrip &strip, int64_t token, float (&value)[kPoolStrip][8]) {
            if (!of.makes_winners) {
                pool_strip_of_mode<T>(b, p.has_cls, strip, value);
                return;
            }
            int winner[kPoolStrip][8];
            pool_strip<T, PoolMode::max, true>(b, p.has_cls, strip, value, winner);
            MVIT_UNROLL
            for (int o = 0; o < kPoolStrip; ++o)
                if (o < strip.outputs)
                    store_winners(winners + (token + o) * p.head_dim, winner[o]);
        },
        [&](int64_t token, int outputs, float (&value)[kPoolStrip][8]) {
            if (!b.norm)
                return;
            MVIT_UNROLL
            for (int o = 0; o < kPoolStrip; ++o) {
                float of_row[8] = {};
                if (o < outputs)
                    Channels<T>::load(grad + (token + o) * g.stride_n * Channels<T>::kBytes, of_row);
                backward.row(value[o], of_row, o < outputs, p.head_dim);
                if (of.makes_dy && o < outputs)
                    Channels<T>::store(dy + (token + o) * p.head_dim * Channels<T>::kBytes, value[o]);
            }
        });
    backward.finish(kPoolGroups, place.channels, p.head_dim, block);
}

} // namespace mvit::cuda
