// Pooling of 1 to 3 branches and LayerNorm, forward, in one launch: each block belongs to one branch.
//   global -> shared    the taps of the block's channels and the norm's vectors, once, as float32
//   global -> register  16 bytes (8 channels) at a time; a thread makes 4 outputs along w together, so that a token
//                       read once serves all of them; neighbours along h and t find it in L1 and L2
//   register            float32 accumulators; mean and variance over the 16 threads of a token by shuffles
//   epilogue            normalised, rounded once, 16 bytes at a time; the cls token is normalised without pooling
// Work per output: kt * kh * kw * D FMA; from memory about one read of each touched token and one write.
#pragma once

#include "common/pool_tiles.h"
#include "cuda/primitives/channels.h"
#include "cuda/primitives/sync.h"

namespace mvit::cuda {

// One strip of outputs: 8 channels of this thread, and where they come from.
struct PoolStrip {
    const char *x; // of this (batch, head) and this thread's channels
    int64_t t, h, w;
    Shared taps; // of this thread's channels
};

MVIT_DEVICE float larger_or_nan(float a, float b) { return b > a || b != b ? b : a; }

template <class T, PoolMode kMode>
MVIT_DEVICE void pool_strip(const PoolBranch &b, bool has_cls, const PoolStrip &strip, float (&value)[kPoolStrip][8]) {
    MVIT_UNROLL
    for (int o = 0; o < kPoolStrip; ++o) {
        MVIT_UNROLL
        for (int c = 0; c < 8; ++c)
            value[o][c] = kMode == PoolMode::max ? negative_infinity() : 0;
    }
    const int64_t first_w = strip.w * b.stride.w - b.padding.w;
    const int kernel_w = int(b.kernel.w), stride_w = int(b.stride.w);
    const int columns = (kPoolStrip - 1) * stride_w + kernel_w;
    const Taps taps_t = taps_inside(strip.t, b.in.t, b.kernel.t, b.stride.t, b.padding.t);
    const Taps taps_h = taps_inside(strip.h, b.in.h, b.kernel.h, b.stride.h, b.padding.h);
    for (int64_t kt = taps_t.first; kt < taps_t.last; ++kt)
        for (int64_t kh = taps_h.first; kh < taps_h.last; ++kh) {
            const int64_t t = strip.t * b.stride.t - b.padding.t + kt, h = strip.h * b.stride.h - b.padding.h + kh;
            const int64_t row = (has_cls ? 1 : 0) + (t * b.in.h + h) * b.in.w;
            const Shared taps = strip.taps + Shared((kt * b.kernel.h + kh) * b.kernel.w * kPoolChannels * 4);
            for (int column = 0; column < columns; ++column) {
                const int64_t w = first_w + column;
                if (w < 0 || w >= b.in.w)
                    continue;
                float x[8];
                Channels<T>::load(strip.x + (row + w) * b.stride_n * Channels<T>::kBytes, x);
                MVIT_UNROLL
                for (int o = 0; o < kPoolStrip; ++o) {
                    const int kw = column - o * stride_w;
                    if (kw < 0 || kw >= kernel_w)
                        continue;
                    if constexpr (kMode == PoolMode::conv) {
                        const Shared tap = taps + Shared(kw * kPoolChannels * 4);
                        const Float4 low = load_shared<Float4>(tap), high = load_shared<Float4>(tap + 16);
                        MVIT_UNROLL
                        for (int c = 0; c < 4; ++c) {
                            value[o][c] += low.value[c] * x[c];
                            value[o][4 + c] += high.value[c] * x[4 + c];
                        }
                    } else {
                        MVIT_UNROLL
                        for (int c = 0; c < 8; ++c)
                            value[o][c] =
                                kMode == PoolMode::max ? larger_or_nan(value[o][c], x[c]) : value[o][c] + x[c];
                    }
                }
            }
        }
    if constexpr (kMode == PoolMode::avg) {
        const float count = float(volume(b.kernel));
        MVIT_UNROLL
        for (int o = 0; o < kPoolStrip; ++o) {
            MVIT_UNROLL
            for (int c = 0; c < 8; ++c)
                value[o][c] /= count;
        }
    }
}

// The sum over the threads of one token. Every lane of the warp takes part.
MVIT_DEVICE float sum_of_token(const float (&value)[8]) {
    float sum = 0;
    MVIT_UNROLL
    for (int c = 0; c < 8; ++c)
        sum += value[c];
    MVIT_UNROLL
    for (int mask = 1; mask < kPoolLanes; mask *= 2)
        sum += shuffle_xor(sum, mask);
    return sum;
}

template <class T>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kPoolThreads, 4) pool3d_norm(const MVIT_GRID_CONSTANT PoolProblem p) {
    int64_t block = block_index();
    int which = 0;
    while (block >= pool_blocks(p, p.branch[which]))
        block -= pool_blocks(p, p.branch[which++]);
    const PoolBranch &b = p.branch[which];

    const int64_t strips = pool_strips(p, b), strips_of_row = pool_strips_of_row(b);
    const int64_t blocks_of_head = ceil_div(strips, kPoolGroups * kPoolPasses);
    const int64_t first_strip = block % blocks_of_head * kPoolGroups * kPoolPasses;
    const int64_t slice = block / blocks_of_head % pool_slices(p);
    const int64_t head = block / blocks_of_head / pool_slices(p) % p.heads;
    const int64_t batch = block / blocks_of_head / pool_slices(p) / p.heads;
    const int64_t first_channel = slice * kPoolChannels;
    const int channels = int(min(p.head_dim - first_channel, kPoolChannels));

    const int thread = thread_index(), group = thread / kPoolLanes, first = thread % kPoolLanes * 8;
    const int taps = b.mode == PoolMode::conv ? int(volume(b.kernel)) : 0;
    const Shared scale = Shared(taps * kPoolChannels * 4), shift = scale + kPoolChannels * 4;
    if (thread < channels) {
        const int64_t channel = first_channel + thread;
        const int64_t of_weight = (b.per_head_weight ? head * p.head_dim : 0) + channel;
        for (int tap = 0; tap < taps; ++tap)
            store_shared(Shared((tap * kPoolChannels + thread) * 4), load_parameter(b.weight, of_weight * taps + tap));
        store_shared(scale + Shared(4 * thread), b.norm_weight.data ? load_parameter(b.norm_weight, channel) : 1.0f);
        store_shared(shift + Shared(4 * thread), b.norm_bias.data ? load_parameter(b.norm_bias, channel) : 0.0f);
    }
    sync_block();

    const bool has_channels = first < channels;
    const int64_t of_channel = first_channel + first;
    const char *const x =
        static_cast<const char *>(b.x) + (batch * b.stride_b + head * b.stride_h + of_channel) * Channels<T>::kBytes;
    const int64_t tokens = (p.has_cls ? 1 : 0) + volume(b.out_grid);
    char *const out = static_cast<char *>(b.out) +
                      ((batch * p.heads + head) * tokens * p.head_dim + of_channel) * Channels<T>::kBytes;
    MVIT_NO_UNROLL
    for (int pass = 0; pass < kPoolPasses; ++pass) {
        const int64_t index = first_strip + pass * kPoolGroups + group;
        const bool is_cls = p.has_cls && index == strips - 1, is_strip = index < strips && has_channels;
        float value[kPoolStrip][8] = {};
        int outputs = 0;
        int64_t token = 0;
        if (is_strip && is_cls) {
            Channels<T>::load(x, value[0]);
            outputs = 1;
        } else if (is_strip) {
            const int64_t row = index / strips_of_row;
            const PoolStrip strip = {x, row / b.out_grid.h, row % b.out_grid.h, index % strips_of_row * kPoolStrip,
                                     Shared(4 * first)};
            outputs = int(min(b.out_grid.w - strip.w, kPoolStrip));
            token = (p.has_cls ? 1 : 0) + row * b.out_grid.w + strip.w;
            if (b.mode == PoolMode::conv)
                pool_strip<T, PoolMode::conv>(b, p.has_cls, strip, value);
            else if (b.mode == PoolMode::avg)
                pool_strip<T, PoolMode::avg>(b, p.has_cls, strip, value);
            else
                pool_strip<T, PoolMode::max>(b, p.has_cls, strip, value);
        }
        MVIT_UNROLL
        for (int o = 0; o < kPoolStrip; ++o) {
            if (b.norm) {
                const float mean = sum_of_token(value[o]) / float(p.head_dim);
                float squares[8];
                MVIT_UNROLL
                for (int c = 0; c < 8; ++c) {
                    value[o][c] = has_channels ? value[o][c] - mean : 0;
                    squares[c] = value[o][c] * value[o][c];
                }
                const float factor = inverse_square_root(sum_of_token(squares) / float(p.head_dim) + float(b.norm_eps));
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
