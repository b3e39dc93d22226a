// What the kernels around the attention are told about one call: projections, row norms and the MLP of both.
#pragma once

#include "common/problem.h"

namespace mvit {

enum class Activation : int32_t { none, gelu };

// x W^T + bias.
struct Layer {
    int64_t in, out;
    Parameter weight;              // in x's dtype, or float32 where that is bfloat16 or float16: then rounded to it
    int64_t stride_out, stride_in; // of the weight; one of them is 1
    Parameter bias;                // (out,) in any dtype, data == nullptr for none
};

// y = activation(x W^T + bias) + residual, row by row.
struct LinearProblem {
    DType dtype; // of x
    int64_t rows;
    const void *x;
    int64_t x_stride;
    Layer layer;
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

// y = residual + fc2(gelu(fc1(LayerNorm(x)))), row by row.
struct NormMlpProblem {
    DType dtype;   // what the products are of
    DType x_dtype; // dtype, or float32 where that is bfloat16 or float16
    int64_t rows;
    const void *x;
    int64_t x_stride;
    Parameter norm_weight, norm_bias; // (fc1.in,) in any dtype, data == nullptr for none
    double eps;
    Layer fc1, fc2;       // fc2.in == fc1.out
    const void *residual; // (rows, fc2.out) in y_dtype; may be x
    int64_t residual_stride;
    DType y_dtype; // dtype, or float32 where that is bfloat16 or float16
    void *y;       // (rows, fc2.out), contiguous
};

} // namespace mvit
