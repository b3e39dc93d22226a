// Pooling of 1 to 3 branches and LayerNorm, forward, in one launch: each block belongs to one branch.
//   global -> shared    the taps of the block's channels and the norm's vectors, once, as float32
//   global -> register  16 bytes (8 channels) at a time; a thread makes 4 outputs along w together, so that a token
//                       read once serves all of them; neighbours along h and t find it in L1 and L2
//   register            float32 accumulators; mean and variance over the 16 threads of a token by shuffles
//   epilogue            normalised, rounded once, 16 bytes at a time; the cls token is normalised without pooling
// Work per output: kt * kh * kw * D FMA; from memory about one read of each touched token and one write.
#pragma once

#include "common/pool_tiles.h"
#include "cuda/kernels/pool_strip.h"

namespace mvit::cuda {

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kPoolThreads, 4) pool3d_norm(const MVIT_GRID_CONSTANT PoolProblem p) {
    int64_t block = block_index();
    int which = 0;
    while (block >= pool_blocks(p, p.branch[which]))
        block -= pool_blocks(p, p.branch[which++]);
    const PoolBranch &b = p.branch[which];

    const int64_t strips = pool_strips(p, b);
    const PoolPlace place(p, block, strips);
    const int taps = stage_taps(p, b, place), thread = thread_index();
    const Shared scale = Shared(taps * kPoolChannels * 4), shift = scale + kPoolChannels * 4;
    if (thread < place.channels) {
        const int64_t channel = place.first_channel + thread;
        store_shared(scale + Shared(4 * thread), b.norm_weight.data ? load_parameter(b.norm_weight, channel) : 1.0f);
        store_shared(shift + Shared(4 * thread), b.norm_bias.data ? load_parameter(b.norm_bias, channel) : 0.0f);
    }
    sync_block();

    const bool has_channels = place.has_channels();
    const int first = place.first;
    const char *const x = place.tokens<T>(static_cast<const char *>(b.x), b.stride_b, b.stride_h);
    const int64_t of_head = pool_tokens(p, b.out_grid) * p.head_dim;
    char *const out = place.tokens<T>(static_cast<char *>(b.out), p.heads * of_head, of_head);
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
            pool_strip_of_mode<T>(b, p.has_cls, strip, value);
        }
        MVIT_UNROLL
        for (int o = 0; o < kPoolStrip; ++o) {
            if (b.norm) {
                const float factor = centre(value[o], has_channels, p.head_dim, b.norm_eps);
                if (has_channels) {
                    MVIT_UNROLL
                    for (int c = 0; c < 8; ++c)
                        value[o][c] = value[o][c] * factor * load_shared<float>(scale + Shared(4 * (first + c))) +
                                      load_shared<float>(shift + Shared(4 * (first + c)));
                }
            }
            if (o < outputs)
                Channels<T>::store(out + (token + o) * p.head_dim * Channels<T>::kBytes, value[o]);
        }
    }
}

} // namespace mvit::cuda
