// What a backward kernel is told about one call: the forward problem, the gradients that come in and those asked for.
//
// Where a gradient that goes out has a null pointer, it is not asked for. All are contiguous, but for that of pooled
// tokens, which has strides.
#pragma once

#include "common/problem.h"

namespace mvit {

// The gradient of a Parameter, of the same shape.
struct ParameterGradient {
    void *data;
    DType dtype;
};

// grad (B, H, N', D) of the pooled tokens; x (B, H, N, D).
struct PoolBranchGradients {
    const void *grad;
    int64_t stride_b, stride_h, stride_n; // of grad
    void *x;
    int64_t x_stride_b, x_stride_h, x_stride_n; // of the gradient of x
    ParameterGradient weight, norm_weight, norm_bias;
};

struct PoolBackwardProblem {
    PoolProblem forward; // without `out`
    PoolBranchGradients gradients[kMaxPoolBranches];
};

// grad (B, H, Nq, Kt+Kh+Kw) in the accumulator's dtype.
struct RelPosBackwardProblem {
    RelPosProblem forward; // without `rows`
    const void *grad;
    int64_t stride_b, stride_h, stride_n; // of grad
    void *q;
    ParameterGradient table_t, table_h, table_w;
};

// grad_out (B, Nq, H, D); grad_lse (B, H, Nq), contiguous, or null.
struct AttentionBackwardProblem {
    AttentionProblem forward; // without `out`; lse is read
    const void *grad_out, *grad_lse;
    int64_t stride_b, stride_n, stride_h; // of grad_out
    void *q, *k, *v, *rel_pos;            // rel_pos in the accumulator's dtype
};

} // namespace mvit
