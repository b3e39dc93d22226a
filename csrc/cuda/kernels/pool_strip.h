// A strip of pooled outputs in the registers of one thread, straight from global memory; forward and backward.
#pragma once

#include "common/pool_tiles.h"
#include "cuda/primitives/channels.h"
#include "cuda/primitives/sync.h"

namespace mvit::cuda {

// What a block and a thread of it work on: a run of strips of one (batch, head), 8 channels a thread.
struct PoolPlace {
    int64_t batch, head;
    int64_t first_strip;   // of the block
    int64_t first_channel; // of the block
    int channels;          // of the block
    int group, first;      // of the thread; its first channel in the block

    // `block` counts within the branch, `strips` are those of one (batch, head).
    MVIT_DEVICE PoolPlace(const PoolProblem &p, int64_t block, int64_t strips) {
        const int64_t blocks_of_head = ceil_div(strips, kPoolGroups * kPoolPasses);
        first_strip = block % blocks_of_head * kPoolGroups * kPoolPasses;
        first_channel = block / blocks_of_head % pool_slices(p) * kPoolChannels;
        head = block / blocks_of_head / pool_slices(p) % p.heads;
        batch = block / blocks_of_head / pool_slices(p) / p.heads;
        channels = int(min(p.head_dim - first_channel, kPoolChannels));
        group = thread_index() / kPoolLanes;
        first = thread_index() % kPoolLanes * 8;
    }

    MVIT_DEVICE bool has_channels() const { return first < channels; }

    // Where this thread's channels of the first token of its head are.
    MVIT_DEVICE int64_t offset(int64_t stride_b, int64_t stride_h) const {
        return batch * stride_b + head * stride_h + first_channel + first;
    }
    template <class T, class Byte> MVIT_DEVICE Byte *tokens(Byte *base, int64_t stride_b, int64_t stride_h) const {
        return base + offset(stride_b, stride_h) * Channels<T>::kBytes;
    }
};

// Copies the taps of the block's channels to `at` in shared memory, [tap][channel] in float32.
MVIT_DEVICE int stage_taps(const PoolProblem &p, const PoolBranch &b, const PoolPlace &place, Shared at = 0) {
    const int taps = b.mode == PoolMode::conv ? int(volume(b.kernel)) : 0, thread = thread_index();
    if (thread < place.channels) {
        const int64_t of_weight = (b.per_head_weight ? place.head * p.head_dim : 0) + place.first_channel + thread;
        for (int tap = 0; tap < taps; ++tap)
            store_shared(at + Shared((tap * kPoolChannels + thread) * 4),
                         load_parameter(b.weight, of_weight * taps + tap));
    }
    return taps;
}

// One strip of outputs: 8 channels of this thread, and where they come from.
struct PoolStrip {
    const char *x; // of this (batch, head) and this thread's channels
    int64_t t, h, w;
    int outputs; // that exist
    Shared taps; // of this thread's channels

    MVIT_DEVICE PoolStrip(const PoolBranch &b, const char *x, int64_t index, Shared taps) : x(x), taps(taps) {
        const int64_t row = index / pool_strips_of_row(b);
        t = row / b.out_grid.h;
        h = row % b.out_grid.h;
        w = index % pool_strips_of_row(b) * kPoolStrip;
        outputs = int(min(b.out_grid.w - w, kPoolStrip));
    }

    MVIT_DEVICE int64_t token(const PoolBranch &b, bool has_cls) const { // of the first output
        return (has_cls ? 1 : 0) + (t * b.out_grid.h + h) * b.out_grid.w + w;
    }
};

// Whether a maximum changes from a to b.
MVIT_DEVICE bool wins(float b, float a) { return b > a || b != b; }

// With kWinners, of a maximum, also the tap it came from: the first one, or the last NaN, as in PyTorch.
template <class T, PoolMode kMode, bool kWinners = false>
MVIT_DEVICE void pool_strip(const PoolBranch &b, bool has_cls, const PoolStrip &strip, float (&value)[kPoolStrip][8],
                            int (*winner)[8] = nullptr) {
    MVIT_UNROLL
    for (int o = 0; o < kPoolStrip; ++o) {
        MVIT_UNROLL
        for (int c = 0; c < 8; ++c) {
            value[o][c] = kMode == PoolMode::max ? negative_infinity() : 0;
            if constexpr (kWinners)
                winner[o][c] = -1;
        }
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
                    } else if constexpr (kMode == PoolMode::avg) {
                        MVIT_UNROLL
                        for (int c = 0; c < 8; ++c)
                            value[o][c] += x[c];
                    } else {
                        const int tap = int((kt * b.kernel.h + kh) * b.kernel.w) + kw;
                        MVIT_UNROLL
                        for (int c = 0; c < 8; ++c) {
                            const bool takes = wins(x[c], value[o][c]);
                            value[o][c] = takes ? x[c] : value[o][c];
                            if constexpr (kWinners)
                                winner[o][c] = takes || winner[o][c] < 0 ? tap : winner[o][c];
                        }
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

template <class T>
MVIT_DEVICE void pool_strip_of_mode(const PoolBranch &b, bool has_cls, const PoolStrip &strip,
                                    float (&value)[kPoolStrip][8]) {
    if (b.mode == PoolMode::conv)
        pool_strip<T, PoolMode::conv>(b, has_cls, strip, value);
    else if (b.mode == PoolMode::avg)
        pool_strip<T, PoolMode::avg>(b, has_cls, strip, value);
    else
        pool_strip<T, PoolMode::max>(b, has_cls, strip, value);
}

// The strips of a block: pool(strip, token, value) makes one, and rows(token, outputs, value) is given it. The cls
// token, which is not pooled, is a row of its own. All threads of a warp take part in `rows`, with 0 outputs where they
// have none.
template <class T, class Pool, class Rows>
MVIT_DEVICE void pool_strips_of_block(const PoolProblem &p, const PoolBranch &b, const PoolPlace &place, int64_t strips,
                                      const Pool &pool, const Rows &rows) {
    const char *const x = place.tokens<T>(static_cast<const char *>(b.x), b.stride_b, b.stride_h);
    MVIT_NO_UNROLL
    for (int pass = 0; pass < kPoolPasses; ++pass) {
        const int64_t index = place.first_strip + pass * kPoolGroups + place.group;
        float value[kPoolStrip][8] = {};
        int outputs = 0;
        int64_t token = 0;
        if (index < strips && place.has_channels()) {
            if (p.has_cls && index == strips - 1) {
                Channels<T>::load(x, value[0]);
                outputs = 1;
            } else {
                const PoolStrip strip(b, x, index, Shared(4 * place.first));
                outputs = strip.outputs;
                token = strip.token(b, p.has_cls);
                pool(strip, token, value);
            }
        }
        rows(token, outputs, value);
    }
}

// The sum over the threads of one token. Every lane of the warp takes part.
MVIT_DEVICE float sum_of_token(float sum) {
    MVIT_UNROLL
    for (int mask = 1; mask < kPoolLanes; mask *= 2)
        sum += shuffle_xor(sum, mask);
    return sum;
}

// Takes the mean of a token from its channels, and returns what they have to be multiplied by for a variance of 1.
// Every lane of the warp takes part; threads without channels get zeros.
MVIT_DEVICE float centre(float (&value)[8], bool has_channels, int64_t head_dim, double eps) {
    float sum = 0, squares = 0;
    MVIT_UNROLL
    for (int c = 0; c < 8; ++c)
        sum += value[c];
    const float mean = sum_of_token(sum) / float(head_dim);
    MVIT_UNROLL
    for (int c = 0; c < 8; ++c) {
        value[c] = has_channels ? value[c] - mean : 0;
        squares += value[c] * value[c];
    }
    return inverse_square_root(sum_of_token(squares) / float(head_dim) + float(eps));
}

// LayerNorm over the head dim, its vectors in shared memory as float32.
struct Norm {
    static constexpr int kSharedBytes = 2 * kPoolChannels * 4;
    const PoolBranch &b;
    Shared vectors; // scale and shift

    MVIT_DEVICE void stage(int64_t first_channel, int channels) const {
        const int thread = thread_index();
        if (!b.norm || thread >= channels)
            return;
        const int64_t channel = first_channel + thread;
        store_shared(vectors + Shared(4 * thread), b.norm_weight.data ? load_parameter(b.norm_weight, channel) : 1.0f);
        store_shared(vectors + Shared(4 * (kPoolChannels + thread)),
                     b.norm_bias.data ? load_parameter(b.norm_bias, channel) : 0.0f);
    }

    // Every lane of the warp takes part. `first` is this thread's first channel in the block.
    MVIT_DEVICE void apply(float (&value)[8], int first, bool has_channels, int64_t head_dim) const {
        if (!b.norm)
            return;
        const float factor = centre(value, has_channels, head_dim, b.norm_eps);
        if (!has_channels)
            return;
        const Shared scale = vectors + Shared(4 * first), shift = scale + kPoolChannels * 4;
        MVIT_UNROLL
        for (int c = 0; c < 8; ++c)
            value[c] = value[c] * factor * load_shared<float>(scale + Shared(4 * c)) +
                       load_shared<float>(shift + Shared(4 * c));
    }
};

} // namespace mvit::cuda
