// What bindings/device.h asks for, by the kernels of csrc/cuda.
#include "bindings/cuda/run.h"
#include "bindings/cuda/place.h"
#include "common/limits.h"
#include "cuda/kernels.h"

namespace mvit::bindings {
namespace {

// Kernels read parameters in one of three formats.
void check_parameter(const char *op, const char *argument, const Parameter &parameter) {
    STD_TORCH_CHECK(!parameter.data || parameter.dtype != DType::f64, op, ": ", argument,
                    " has dtype float64, it must be float32, bfloat16 or float16");
}

void check_pool(const char *op, const PoolProblem &p) {
    for (int i = 0; i < p.branches; ++i) {
        check_parameter(op, "weight", p.branch[i].weight);
        check_parameter(op, "norm_weight", p.branch[i].norm_weight);
        check_parameter(op, "norm_bias", p.branch[i].norm_bias);
        STD_TORCH_CHECK(!p.branch[i].norm || p.head_dim <= kMaxHeadDim, op, ": x has head dim ", p.head_dim,
                        ", with a norm it must be at most ", kMaxHeadDim);
        const int64_t taps = volume(p.branch[i].kernel), most = max_pool_taps(p.branch[i].mode);
        STD_TORCH_CHECK(taps <= most, op, ": kernel has ", taps, " taps, it must have at most ", most);
    }
}

template <class Problem> void check_tables(const char *op, const Problem &p) {
    check_parameter(op, "table_t", p.table_t);
    check_parameter(op, "table_h", p.table_h);
    check_parameter(op, "table_w", p.table_w);
}

void check_attention(const char *op, const AttentionProblem &p, int64_t most) {
    STD_TORCH_CHECK(p.head_dim <= kMaxHeadDim, op, ": q has head dim ", p.head_dim, ", it must be at most ",
                    kMaxHeadDim);
    STD_TORCH_CHECK(rel_pos_entries(p) <= most, op, ": rel_pos has ", rel_pos_entries(p),
                    " entries a row, there must be at most ", most);
}

template <class Problem>
void start(const char *op, const Tensor &like, const Problem &problem, int64_t (*scratch_bytes)(const Problem &),
           const char *(*kernel)(const Problem &, void *, mvit::cuda::Stream)) {
    Place place(like); // scratch_bytes may ask about the current device
    void *const scratch = place.scratch(scratch_bytes ? scratch_bytes(problem) : 0);
    const char *const reason = kernel(problem, scratch, place.stream());
    STD_TORCH_CHECK(!reason, op, ": the kernel was not started: ", reason);
}

} // namespace

Access access() { return {16, kHeadDimMultiple}; }

void run(const char *op, const Tensor &like, const PoolProblem &problem) {
    check_pool(op, problem);
    start<PoolProblem>(op, like, problem, nullptr, [](const PoolProblem &p, void *, mvit::cuda::Stream stream) {
        return cuda::pool3d_norm_forward(p, stream);
    });
}

void run(const char *op, const Tensor &like, const RelPosProblem &problem) {
    check_tables(op, problem);
    start<RelPosProblem>(op, like, problem, nullptr, [](const RelPosProblem &p, void *, mvit::cuda::Stream stream) {
        return cuda::decomposed_rel_pos_forward(p, stream);
    });
}

void run(const char *op, const Tensor &like, const AttentionProblem &problem) {
    check_attention(op, problem, max_rel_pos_row(problem.dtype, problem.head_dim));
    start(op, like, problem, cuda::pooling_attention_forward_scratch, cuda::pooling_attention_forward);
}

void run(const char *op, const Tensor &like, const PooledQueryProblem &problem) {
    check_pool(op, problem.pool);
    check_tables(op, problem);
    const char *const reason = pooled_query_not_supported(problem);
    STD_TORCH_CHECK(!reason, op, ": ", reason);
    start<PooledQueryProblem>(op, like, problem, nullptr,
                              [](const PooledQueryProblem &p, void *, mvit::cuda::Stream stream) {
                                  return cuda::pooled_query_attention_forward(p, stream);
                              });
}

void run(const char *op, const Tensor &like, const PoolBackwardProblem &problem) {
    check_pool(op, problem.forward);
    start(op, like, problem, cuda::pool3d_norm_backward_scratch, cuda::pool3d_norm_backward);
}

void run(const char *op, const Tensor &like, const RelPosBackwardProblem &problem) {
    check_tables(op, problem.forward);
    start(op, like, problem, cuda::decomposed_rel_pos_backward_scratch, cuda::decomposed_rel_pos_backward);
}

void run(const char *op, const Tensor &like, const AttentionBackwardProblem &problem) {
    check_attention(op, problem.forward, max_rel_pos_row_backward(problem.forward.dtype, problem.forward.head_dim));
    start(op, like, problem, cuda::pooling_attention_backward_scratch, cuda::pooling_attention_backward);
}

} // namespace mvit::bindings
