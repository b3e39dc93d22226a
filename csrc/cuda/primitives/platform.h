// What a kernel source is compiled by: nvcc for a GPU, or a host C++ compiler for csrc/emulation.
//
// Kernels use only this folder: no threadIdx, no <cuda_fp16.h>, no asm of their own. Under a host compiler each name
// has the meaning the PTX ISA manual gives it, checked at every call.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MVIT_DEVICE __device__ __forceinline__
#define MVIT_KERNEL __global__
#define MVIT_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define MVIT_GRID_CONSTANT __grid_constant__
#define MVIT_UNROLL _Pragma("unroll")
#define MVIT_NO_UNROLL _Pragma("unroll 1")
#else
#include "emulation/block.h"
#define MVIT_DEVICE inline
#define MVIT_KERNEL
#define MVIT_LAUNCH_BOUNDS(threads, blocks)
#define MVIT_GRID_CONSTANT
#define MVIT_UNROLL
#define MVIT_NO_UNROLL
#endif

namespace mvit::cuda {

constexpr int kWarp = 32;

#ifdef __CUDACC__
extern __shared__ __align__(128) unsigned char dynamic_shared[];

MVIT_DEVICE int thread_index() { return int(threadIdx.x); }
MVIT_DEVICE int64_t block_index() { return int64_t(blockIdx.x); }
// The same number, read once more: what is computed of it need not stay in registers all the while.
MVIT_DEVICE int64_t block_index_again() {
    uint32_t index;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
    return int64_t(index);
}
#else
inline int thread_index() { return emulation::thread_index(); }
inline int64_t block_index() { return emulation::block_index(); }
inline int64_t block_index_again() { return emulation::block_index(); }
#endif

// The same number, of which the compiler knows nothing: what is computed of it is computed here, not ahead of a loop,
// and takes no registers meanwhile.
MVIT_DEVICE int opaque(int x) {
#ifdef __CUDACC__
    asm volatile("" : "+r"(x));
#endif
    return x;
}
MVIT_DEVICE int64_t opaque(int64_t x) {
#ifdef __CUDACC__
    asm volatile("" : "+l"(x));
#endif
    return x;
}

MVIT_DEVICE int lane_index() { return thread_index() % kWarp; }
MVIT_DEVICE int warp_index() { return thread_index() / kWarp; }

} // namespace mvit::cuda
