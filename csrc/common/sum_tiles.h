// How CUDA kernels add up partial sums.
#pragma once

#include <cstdint>

namespace mvit {

constexpr int kSumWarps = 8; // parts that a block adds side by side
constexpr int kSumThreads = 32 * kSumWarps;
constexpr int kSumChannels = 128; // of a block, 4 for each lane
constexpr int64_t kSumSharedBytes = kSumWarps * kSumChannels * 4;

} // namespace mvit
