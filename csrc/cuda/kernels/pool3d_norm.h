// Pooling of 1 to 3 branches and LayerNorm, forward: each block belongs to one branch. Branches whose windows fit are
// cut into tiles (pool_tile.h), the others into strips (pool_strip.h): one launch where all are of a kind, as they are
// in all published models but those with a kernel of stride + 1.
//   global -> shared    tiles: each token once, by cp.async; strips: the taps, once for the block
//   global -> register  strips: 16 bytes (8 channels) at a time; a thread makes 4 outputs along w together, neighbours
//                       along h and t find a token in L1 and L2
//   register            float32 accumulators; mean and variance over the 16 threads of a token by shuffles
//   epilogue            normalised, rounded once, 16 bytes at a time; the cls token is normalised without pooling
// Work per output: kt * kh * kw * D FMA.
#pragma once

#include "cuda/kernels/block_ranges.h"
#include "cuda/kernels/pool_tile.h"

namespace mvit::cuda {

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kPoolTileThreads, 2) pool3d_norm(const MVIT_GRID_CONSTANT PoolPlan plan) {
    const PoolProblem &p = plan.problem;
    int64_t block = block_index();
    const int which = range_of_block(block, [&](int i) { return plan.tiling[i].blocks; });
    const PoolBranch &b = p.branch[which];
    const PoolTiling &tiling = plan.tiling[which];

    const TilePlace place = TilePlace::of_block(p, b, tiling, block);
    const Norm norm = {b, Shared(2 * tiling.frame_bytes + tiling.tap_bytes + tiling.staging_bytes)};
    norm.stage(place.first_channel, place.channels);
    const int first = thread_index() % kPoolLanes * 8;
    const bool has_channels = first < place.channels;
    char *const out =
        static_cast<char *>(b.out) +
        ((place.batch * p.heads + place.head) * pool_tokens(p, b.out_grid) * p.head_dim + place.first_channel + first) *
            Channels<T>::kBytes;
    pool_tile_rows<T>(p, b, tiling, place, [&](int64_t token, bool exists, float (&value)[8]) {
        norm.apply(value, first, has_channels, p.head_dim);
        if (exists && has_channels)
            Channels<T>::store(out + token * p.head_dim * Channels<T>::kBytes, value);
    });
}

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kPoolThreads, 4) pool3d_norm_strips(const MVIT_GRID_CONSTANT PoolPlan plan) {
    const PoolProblem &p = plan.problem;
    int64_t block = block_index();
    const PoolBranch &b = p.branch[range_of_block(block, [&](int i) { return plan.strip_blocks[i]; })];

    const int64_t strips = pool_strips(p, b);
    const PoolPlace place(p, block, strips);
    const Norm norm = {b, Shared(stage_taps(p, b, place) * kPoolChannels * 4)};
    norm.stage(place.first_channel, place.channels);
    sync_block();

    const int64_t of_head = pool_tokens(p, b.out_grid) * p.head_dim;
    char *const out = place.tokens<T>(static_cast<char *>(b.out), p.heads * of_head, of_head);
    pool_strips_of_block<T>(
        p, b, place, strips,
        [&](const PoolStrip &strip, int64_t, float (&value)[kPoolStrip][8]) {
            pool_strip_of_mode<T>(b, p.has_cls, strip, value);
        },
        [&](int64_t token, int outputs, float (&value)[kPoolStrip][8]) {
            MVIT_UNROLL
            for (int o = 0; o < kPoolStrip; ++o) {
                norm.apply(value[o], place.first, place.has_channels(), p.head_dim);
                if (o < outputs)
                    Channels<T>::store(out + (token + o) * p.head_dim * Channels<T>::kBytes, value[o]);
            }
        });
}

} // namespace mvit::cuda
