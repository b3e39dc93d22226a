// What the launches ask about the GPU they run on.
#pragma once

#include "cuda/primitives/platform.h"

#ifdef __CUDACC__
#include <atomic>
#include <cuda_runtime_api.h>
#endif

namespace mvit::cuda {

// Of the current device, kept for the next call; nothing waits for the GPU. 1 where there is none: the launch says why.
inline int64_t multiprocessors() {
#ifdef __CUDACC__
    constexpr int kDevices = 64;
    static std::atomic<int> known[kDevices]; // 0: not asked yet
    int device = 0, count = 0;
    if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) {
        cudaGetLastError(); // the launch meets it again
        return 1;
    }
    if (const int answer = known[device].load(std::memory_order_relaxed))
        return answer;
    if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
        cudaGetLastError();
        return 1;
    }
    known[device].store(count, std::memory_order_relaxed);
    return count;
#else
    return emulation::multiprocessors();
#endif
}

} // namespace mvit::cuda
