// Starting a kernel: blocks in one dimension, on a stream, without waiting for it.
#pragma once

#include "cuda/primitives/platform.h"
#include "cuda/primitives/stream.h"

#ifdef __CUDACC__
#include <cuda_runtime_api.h>
#endif

namespace mvit::cuda {

constexpr int64_t kMaxBlocks = (int64_t(1) << 31) - 1;

// nullptr, or why the kernel was not started, in CUDA's words.
template <auto kKernel, class Problem>
const char *launch(const Problem &problem, int64_t blocks, int threads, int64_t shared_bytes, Stream stream) {
    if (blocks == 0)
        return nullptr;
    if (blocks > kMaxBlocks)
        return "more than 2^31 - 1 blocks";
#ifdef __CUDACC__
    // More than 48 KB have to be asked for; the limit of the device is the runtime's to check.
    if (shared_bytes > 48 << 10) {
        const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void *>(kKernel),
                                                       cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
        if (error != cudaSuccess) {
            cudaGetLastError(); // this error is reported here; it must not reach the next call
            return cudaGetErrorString(error);
        }
    }
    kKernel<<<dim3(unsigned(blocks)), dim3(unsigned(threads)), size_t(shared_bytes),
              static_cast<cudaStream_t>(const_cast<void *>(stream))>>>(problem);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#else
    emulation::launch(blocks, threads, size_t(shared_bytes), *static_cast<const uint64_t *>(stream),
                      [&] { kKernel(problem); });
    return nullptr;
#endif
}

} // namespace mvit::cuda
