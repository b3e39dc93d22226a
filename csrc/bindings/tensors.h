// What the bindings of all ops share: reading tensors into problem structs, and allocation.
#pragma once

#include "bindings/device.h"
#include "common/grid.h"

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

// A tensor of four dims and the given dtype, on the device of `like`, whose last stride is 1: itself, or a contiguous
// copy.
Tensor rows(const char *op, const char *argument, const Tensor &tensor, DType dtype, const Tensor &like);

// The same with a head dim as its last, laid out as the kernels read channels: itself, or a copy.
Tensor tokens(const char *op, const char *argument, const Tensor &tensor, DType dtype, const Tensor &like);

// A parameter of the given shape on the device of `like`, contiguous. Its dtype may be any of the four.
Tensor parameter(const char *op, const char *argument, const Tensor &tensor, const std::vector<int64_t> &shape,
                 const Tensor &like);
Parameter as_parameter(const char *op, const char *argument, const Tensor &tensor);

// Three sizes of at least `least`, from `first` on.
Size3 size3(const char *op, const char *argument, const std::vector<int64_t> &list, size_t first, int64_t least);

void check_shape(const char *op, const char *argument, const Tensor &tensor, const std::vector<int64_t> &shape);

Tensor empty(const Tensor &like, const std::vector<int64_t> &shape, ScalarType dtype);
Tensor gradient_like(const Tensor &like); // contiguous, uninitialised
Tensor nothing(const Tensor &like);       // a tensor without elements

} // namespace mvit::bindings
