// pool3d_norm's backward, the gradient of the weight by windows of 3 x 3: sums of x * dy over tiles of outputs that
// march along t as those of pool_tile.h do, so that a token of x or dy comes from global memory once for its tile.
//   global -> shared    a frame of the tile's inputs and one of its dy by cp.async, while those before are in use
//   shared -> register  a thread has two channels and one frame kt of the window. It takes dy of a line of 7 outputs at
//   a
//                       time, and reads each input under the line once for all of them that it meets, up to 3
//   register            the sums of 9 taps, over all tiles of the block
//   epilogue            the block's sums, in their own place: no atomics
// Work per output: 2 * kt * kh * kw * D FLOP.
#pragma once

#include "common/pool_backward_tiles.h"
#include "cuda/kernels/block_ranges.h"
#include "cuda/kernels/pool_tile.h"

namespace mvit::cuda {

// sum[kh][kw] += x * dy over a line of outputs, of which `width` exist if not kWhole. `at`: the first input under the
// line. What does not exist is not multiplied, for 0 * NaN is NaN.
template <class T, int kStep, bool kWhole>
MVIT_DEVICE void add_line(float (&sum)[3][3][2], Shared at, Shared dy_at, int token_bytes, int width) {
    constexpr int kColumns = pool_tile_extent(kPoolTileWidth, kStep);
    Float2 dy[kPoolTileWidth];
    MVIT_UNROLL
    for (int o = 0; o < kPoolTileWidth; ++o)
        dy[o] = load_pair<T>(dy_at + Shared(o * token_bytes));
    MVIT_UNROLL
    for (int kh = 0; kh < 3; ++kh) {
        MVIT_UNROLL
        for (int column = 0; column < kColumns; ++column) {
            const Float2 x = load_pair<T>(at + Shared((kh * kColumns + column) * token_bytes));
            MVIT_UNROLL
            for (int kw = column % kStep; kw < 3; kw += kStep) {
                const int o = (column - kw) / kStep;
                if (column < kw || o >= kPoolTileWidth || (!kWhole && o >= width))
                    continue;
                MVIT_UNROLL
                for (int c = 0; c < 2; ++c)
                    sum[kh][kw][c] += x.value[c] * dy[o].value[c];
            }
        }
    }
}

template <class T, int kFrames, int kStep>
MVIT_DEVICE void weight_of_tiles(const PoolBackwardPlan &plan, int which, int64_t block) {
    const PoolProblem &p = plan.problem.forward;
    const PoolBranch &b = p.branch[which];
    const PoolBranchGradients &g = plan.problem.gradients[which];
    const PoolBackwardBranch &of = plan.branch[which];
    const PoolTiling &tiling = of.weight_tiling;
    const int64_t slice = block % pool_slices(p), part = block / pool_slices(p) % of.weight_parts;
    const int64_t filter = block / pool_slices(p) / of.weight_parts;
    const int channels = int(min(p.head_dim - slice * kPoolChannels, kPoolChannels));
    const int pairs = channels / 2, role = thread_index() / pairs, pair = thread_index() % pairs;
    // Lines are dealt out to groups of threads; of a group each thread has a frame of the window and two channels.
    const int groups = kPoolTileThreads / pairs / kFrames, group = role / kFrames, kt = role % kFrames;
    const int token_bytes = channels * Channels<T>::kBytes, chunks = token_bytes / 16;
    const Shared frame_bytes = Shared(tiling.frame_bytes), dy_at = 2 * frame_bytes;
    const Shared dy_bytes = Shared(pool_weight_dy_bytes(p, tiling));
    const int64_t outputs = pool_tokens(p, b.out_grid), cls = p.has_cls ? 1 : 0;

    constexpr int kSlots = kFrames + 1; // of dy
    float sum[3][3][2] = {};
    const int tiles_of_head = int(pool_tiles_of_head(tiling));
    MVIT_NO_UNROLL
    for (int64_t tile = part; tile < of.of_group; tile += of.weight_parts) {
        const int64_t token = tile / tiles_of_head; // (batch, head), or the batch of one head's filter
        const int64_t batch = of.weight_groups > 1 ? token : token / p.heads;
        const int64_t head = of.weight_groups > 1 ? filter : token % p.heads;
        const TilePlace place(p, b, tiling, int(tile % tiles_of_head), slice, head, batch);
        const TileFrames<T, kStep> in(p, b, place);
        const int64_t dy_stride = b.norm ? p.head_dim : g.stride_n;
        const char *const dy =
            (b.norm ? static_cast<const char *>(of.dy) +
                          ((batch * p.heads + head) * outputs + cls) * p.head_dim * Channels<T>::kBytes
                    : static_cast<const char *>(g.grad) +
                          (batch * g.stride_b + head * g.stride_h + cls * g.stride_n) * Channels<T>::kBytes) +
            place.first_channel * Channels<T>::kBytes + in.chunk_bytes;

        const int first_t = place.t * int(b.stride.t) - int(b.padding.t);
        const auto start = [&](int frame) {
            const int t = first_t + frame * int(b.stride.t);
            if (frame < place.run + kFrames - 1 && t >= 0 && t < b.in.t)
                in.start(t, Shared(frame % 2) * frame_bytes);
            if (frame < place.run && in.token < kPoolTileThreads / chunks) {
                MVIT_NO_UNROLL
                for (int i = in.token; i < place.lines * kPoolTileWidth; i += kPoolTileThreads / chunks) {
                    const int of_line = i / kPoolTileWidth, column = i % kPoolTileWidth;
                    const bool valid = column < place.width;
                    const int64_t at = valid ? place.token(b, false, frame, of_line, column) * dy_stride : 0;
                    cp_async_16(dy_at + Shared(frame % kSlots) * dy_bytes + Shared(i * token_bytes + in.chunk_bytes),
                                dy + at * Channels<T>::kBytes, valid);
                }
            }
            cp_async_commit();
        };
        start(0);
        MVIT_NO_UNROLL
        for (int frame = 0; frame < place.run + kFrames - 1; ++frame) {
            cp_async_wait<0>();
            sync_block(); // the frames are there for all, and all are done with those before
            start(frame + 1);
            const int t = first_t + frame * int(b.stride.t), output = frame - kt;
            if (group >= groups || output < 0 || output >= place.run || t < 0 || t >= b.in.t)
                continue;
            MVIT_NO_UNROLL
            for (int line = group; line < place.lines; line += groups) {
                const Shared at = Shared(frame % 2) * frame_bytes + Shared(line * kStep * in.kColumns * token_bytes) +
                                  Shared(pair * 2 * Channels<T>::kBytes);
                const Shared dy_of_line = dy_at + Shared(output % kSlots) * dy_bytes +
                                          Shared(line * kPoolTileWidth * token_bytes + pair * 2 * Channels<T>::kBytes);
                if (place.width == kPoolTileWidth)
                    add_line<T, kStep, true>(sum, at, dy_of_line, token_bytes, kPoolTileWidth);
                else
                    add_line<T, kStep, false>(sum, at, dy_of_line, token_bytes, place.width);
            }
        }
        cp_async_wait<0>();
        sync_block();
    }

    // [group][tap][channel], then the groups are added.
    constexpr int kTaps = kFrames * 9;
    if (group < groups) {
        MVIT_UNROLL
        for (int tap = 0; tap < 9; ++tap)
            store_shared(Shared((((group * kFrames + kt) * 9 + tap) * channels + 2 * pair) * 4),
                         Float2{{sum[tap / 3][tap % 3][0], sum[tap / 3][tap % 3][1]}});
    }
    sync_block();
    float *const to = of.weight_sums + (filter * of.weight_parts + part) * kTaps * p.head_dim + slice * kPoolChannels;
    for (int i = thread_index(); i < kTaps * channels; i += kPoolTileThreads) {
        float total = 0;
        for (int of_group = 0; of_group < groups; ++of_group)
            total += load_shared<float>(Shared((of_group * kTaps * channels + i) * 4));
        store_global(to + i / channels * p.head_dim + i % channels, total);
    }
}

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kPoolTileThreads, 2)
    pool3d_norm_backward_weight_tiles(const MVIT_GRID_CONSTANT PoolBackwardPlan plan) {
    int64_t block = block_index();
    const int which = range_of_block(block, [&](int i) { return plan.branch[i].weight_tile_blocks; });
    const PoolTiling &tiling = plan.branch[which].weight_tiling;
    if (tiling.frames == 3) {
        if (tiling.step == 1)
            weight_of_tiles<T, 3, 1>(plan, which, block);
        else if (tiling.step == 2)
            weight_of_tiles<T, 3, 2>(plan, which, block);
        else
            weight_of_tiles<T, 3, 3>(plan, which, block);
    } else if (tiling.step == 1) {
        weight_of_tiles<T, 1, 1>(plan, which, block);
    } else if (tiling.step == 2) {
        weight_of_tiles<T, 1, 2>(plan, which, block);
    } else {
        weight_of_tiles<T, 1, 3>(plan, which, block);
    }
}

} // namespace mvit::cuda
