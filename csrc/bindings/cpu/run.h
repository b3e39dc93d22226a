// Calling the CPU kernels: threads of torch's pool and scratch memory of its allocator.
#pragma once

#include "bindings/tensors.h"
#include "cpu/kernels.h"

namespace mvit::bindings {

cpu::ParallelFor parallel_for();

template <class Problem>
void run_kernel(const Tensor &like, const Problem &problem, int64_t (*scratch_bytes)(const Problem &, int64_t),
                void (*kernel)(const Problem &, void *, const cpu::ParallelFor &)) {
    const cpu::ParallelFor parallel = parallel_for();
    const Tensor scratch = empty(like, {scratch_bytes(problem, parallel.threads)}, ScalarType::Byte);
    kernel(problem, scratch.mutable_data_ptr(), parallel);
}

} // namespace mvit::bindings
