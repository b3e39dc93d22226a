// Barriers, exchange between lanes, and copies that run on their own.
#pragma once

#include "cuda/primitives/memory.h"

namespace mvit::cuda {

#ifdef __CUDACC__
// All threads of the block have arrived, and see what the others wrote before.
MVIT_DEVICE void sync_block() { __syncthreads(); }
// The same for the lanes of a warp.
MVIT_DEVICE void sync_warp() { __syncwarp(); }
// The value of lane (lane ^ mask).
MVIT_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
// True in every lane if it is true in one.
MVIT_DEVICE bool any(bool value) { return __any_sync(0xffffffffu, value); }
#else
inline void sync_block(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
    emulation::sync_block(file, line);
}
inline void sync_warp() { emulation::sync_warp(); }
inline float shuffle_xor(float value, int mask) { return emulation::shuffle_xor(value, mask); }
inline bool any(bool value) { return emulation::any(value); }
#endif

// Starts a copy of 16 bytes, both ends aligned to 16; writes zeros instead where `valid` is false, and then reads
// nothing. The bytes are there for the thread that started it after cp_async_wait, for others after a barrier too.
MVIT_DEVICE void cp_async_16(Shared to, const void *from, bool valid) {
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(valid ? 16 : 0)
                 : "memory");
#else
    emulation::cp_async_16(to, from, valid);
#endif
}

// Makes a group of the copies started since the last one; an empty group is complete.
MVIT_DEVICE void cp_async_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emulation::cp_async_commit();
#endif
}

// Waits until at most kGroups of this thread's groups, the youngest, are still under way.
template <int kGroups> MVIT_DEVICE void cp_async_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#else
    emulation::cp_async_wait(kGroups);
#endif
}

} // namespace mvit::cuda
