// What a kernel is told about one call: pointers, sizes and strides. No torch, no CUDA.
//
// All strides count elements and all innermost strides are 1. Sizes are those the caller has checked; kernels check
// nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mvit {

enum class DType : int32_t { f32, bf16, f16, f64 };

static constexpr size_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

// float64 accumulates in float64, everything else in float32.
static constexpr size_t size_of_accumulator(DType dtype) { return dtype == DType::f64 ? 8 : 4; }

// A (T, H, W) triple: a grid, a kernel, a stride or a padding.
struct Size3 {
    int64_t t, h, w;
};

enum class PoolMode : int32_t { conv, avg, max };

// A parameter vector or matrix, contiguous, in a dtype of its own; data == nullptr where the layer has none.
struct Parameter {
    const void *data;
    DType dtype;
};

// One pooling of (B, H, N, D) tokens, N = has_cls + T*H*W, into contiguous (B, H, N', D), and a LayerNorm over D.
struct PoolBranch {
    const void *x;
    void *out;
    int64_t stride_b, stride_h, stride_n; // of x
    Size3 in, out_grid, kernel, stride, padding;
    PoolMode mode;
    Parameter weight;     // conv: (C, kt, kh, kw)
    bool per_head_weight; // C == H*D, head-major; else C == D, shared by the heads
    bool norm;
    Parameter norm_weight, norm_bias; // (D,)
    double norm_eps;
};

constexpr int kMaxPoolBranches = 3;

struct PoolProblem {
    DType dtype;
    int64_t batch, heads, head_dim;
    bool has_cls;
    int32_t branches;
    PoolBranch branch[kMaxPoolBranches];
};

// rows[b, h, i, :] = [<q_i, table_t[t]> | <q_i, table_h[h]> | <q_i, table_w[w]>], i at (t, h, w) of grid_q.
struct RelPosProblem {
    DType dtype;
    int64_t batch, heads, head_dim;
    bool has_cls;
    Size3 grid_q, grid_k;
    const void *q; // (B, H, Nq, D)
    int64_t q_stride_b, q_stride_h, q_stride_n;
    Parameter table_t, table_h, table_w; // (Qt, Kt, D), (Qh, Kh, D), (Qw, Kw, D)
    void *rows;                          // (B, H, Nq, Kt+Kh+Kw), contiguous, in the accumulator's dtype
};

enum class Residual : int32_t { none, all, no_cls };

// out = softmax(scale * q k^T + bias) v (+ q), and the log-sum-exp of each row.
struct AttentionProblem {
    DType dtype;
    bool tf32; // CUDA, float32: products of operands rounded to TF32 are allowed
    int64_t batch, heads, queries, keys, head_dim;
    bool has_cls;
    Residual residual;
    double scale;
    const void *q, *k, *v; // (B, H, Nq or Nk, D)
    int64_t q_stride_b, q_stride_h, q_stride_n;
    int64_t k_stride_b, k_stride_h, k_stride_n;
    int64_t v_stride_b, v_stride_h, v_stride_n;
    const void *rel_pos; // (B, H, Nq, Kt+Kh+Kw) in the accumulator's dtype, or nullptr; grid_k is set only with it
    int64_t rel_pos_stride_b, rel_pos_stride_h, rel_pos_stride_n;
    Size3 grid_k;
    void *out; // (B, Nq, H, D), contiguous
    void *lse; // (B, H, Nq), contiguous, in the accumulator's dtype
};

} // namespace mvit
