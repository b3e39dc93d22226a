// The last step of every gradient that is a sum over many tokens: rows of partial sums, added in a fixed order.
#pragma once

#include "common/sum_tiles.h"
#include "cuda/primitives/channels.h"
#include "cuda/primitives/sync.h"

namespace mvit::cuda {

// Adds `parts` rows of `channels` float32, `stride` apart, from `from` on; a multiple of 4 channels. A warp takes
// every kSumWarps-th part, a lane 4 channels; then a thread per channel adds the warps, and calls store(channel, sum).
// Uses kSumSharedBytes of shared memory. Every thread of the block takes part.
template <class Store>
MVIT_DEVICE void sum_of_parts(const float *from, int64_t parts, int64_t stride, int channels, const Store &store) {
    const int channel = lane_index() * 4;
    if (channel < channels) {
        Float4 sum = {};
        for (int64_t part = warp_index(); part < parts; part += kSumWarps) {
            const Float4 more = load_global<Float4>(from + part * stride + channel);
            MVIT_UNROLL
            for (int c = 0; c < 4; ++c)
                sum.value[c] += more.value[c];
        }
        store_shared(Shared((warp_index() * kSumChannels + channel) * 4), sum);
    }
    sync_block();
    for (int c = thread_index(); c < channels; c += kSumThreads) {
        float sum = 0;
        for (int warp = 0; warp < kSumWarps; ++warp)
            sum += load_shared<float>(Shared((warp * kSumChannels + c) * 4));
        store(c, sum);
    }
}

} // namespace mvit::cuda
