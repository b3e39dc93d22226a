// What the bindings of all ops share: reading tensors into problem structs, scratch memory and threads.
#pragma once

#include "common/grid.h"
#include "cpu/kernels.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace mvit::bindings {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// "(2, 1, 393, 96)", for messages.
std::string shape_of(const Tensor &tensor);

// Refuses all but float32, bfloat16, float16 and float64.
DType dtype_of(const char *op, const char *argument, const Tensor &tensor);
ScalarType scalar_type_of(DType dtype);
ScalarType accumulator_type_of(DType dtype);

// A CPU tensor of four dims and the given dtype whose last stride is 1: itself, or a contiguous copy.
Tensor tokens(const char *op, const char *argument, const Tensor &tensor, DType dtype);

// A parameter of the given shape, contiguous. Its dtype may be any of the four.
Tensor parameter(const char *op, const char *argument, const Tensor &tensor, const std::vector<int64_t> &shape);
Parameter as_parameter(const char *op, const char *argument, const Tensor &tensor);

// Three sizes of at least `least`, from `first` on.
Size3 size3(const char *op, const char *argument, const std::vector<int64_t> &list, size_t first, int64_t least);

void check_shape(const char *op, const char *argument, const Tensor &tensor, const std::vector<int64_t> &shape);

Tensor empty(const Tensor &like, const std::vector<int64_t> &shape, ScalarType dtype);
Tensor gradient_like(const Tensor &like); // contiguous, uninitialised
Tensor nothing(const Tensor &like);       // a tensor without elements

// The threads of torch's pool.
cpu::ParallelFor parallel_for();

// Runs a kernel with the scratch memory it asks for, from torch's allocator.
template <class Problem>
void run(const Tensor &like, const Problem &problem, int64_t (*scratch_bytes)(const Problem &, int64_t),
         void (*kernel)(const Problem &, void *, const cpu::ParallelFor &)) {
    const cpu::ParallelFor parallel = parallel_for();
    const Tensor scratch = empty(like, {scratch_bytes(problem, parallel.threads)}, ScalarType::Byte);
    kernel(problem, scratch.mutable_data_ptr(), parallel);
}

} // namespace mvit::bindings
