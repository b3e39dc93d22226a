// What the kernels around the attention are told about one call: projections and row norms.
#pragma once

#include "common/problem.h"

namespace mvit {

enum class Activation : int32_t { none, gelu };

// y = activation(x W^T + bias) + residual, row by row.
struct LinearProblem {
    DType dtype; // of x, and what the weights are rounded to
    int64_t rows, in, out;
    const void *x;
    int64_t x_stride;
    Parameter weight;                            // in x's dtype, or float32 where that is bfloat16 or float16
    int64_t weight_stride_out, weight_stride_in; // one of them is 1
    Parameter bias;                              // (out,) in any dtype, data == nullptr for none
    Activation activation;
    const void *residual; // (rows, out) in y_dtype, or nullptr
    int64_t residual_stride;
    DType y_dtype; // x's dtype, or float32 where that is bfloat16 or float16
    void *y;       // (rows, out), contiguous
};

// y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, row by row.
struct LayerNormProblem {
    DType dtype;
    int64_t rows, channels;
    const void *x;
    int64_t x_stride;
    Parameter weight, bias; // (channels,) in any dtype, data == nullptr for none
    double eps;
    DType y_dtype; // x's dtype, or bfloat16 or float16 where that is float32
    void *y;       // (rows, channels), contiguous
};

} // namespace mvit
