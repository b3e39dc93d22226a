// The CPU kernels as the bindings see them: one table of functions per instruction-set level, and the choice of a
// level.
#pragma once

#include "common/backward.h"
#include "common/linear.h"

namespace mvit::cpu {

// Runs body(context, begin, end) on disjoint ranges that cover [0, count). The kernels get it from their caller, so
// that they share the caller's thread pool without knowing it. The body never throws.
struct ParallelFor {
    using Body = void (*)(const void *context, int64_t begin, int64_t end);
    void (*run)(int64_t count, Body body, const void *context);
    int64_t threads;
};

// `scratch` is uninitialised memory, aligned to 64 bytes, of as many bytes as the function next to it says for that
// problem and number of threads. Kernels allocate nothing.
struct Kernels {
    const char *level;
    int64_t (*pool3d_norm_scratch)(const PoolProblem &, int64_t threads);
    void (*pool3d_norm)(const PoolProblem &, void *scratch, const ParallelFor &);
    int64_t (*decomposed_rel_pos_scratch)(const RelPosProblem &, int64_t threads);
    void (*decomposed_rel_pos)(const RelPosProblem &, void *scratch, const ParallelFor &);
    int64_t (*pooling_attention_scratch)(const AttentionProblem &, int64_t threads);
    void (*pooling_attention)(const AttentionProblem &, void *scratch, const ParallelFor &);
    int64_t (*pool3d_norm_backward_scratch)(const PoolBackwardProblem &, int64_t threads);
    void (*pool3d_norm_backward)(const PoolBackwardProblem &, void *scratch, const ParallelFor &);
    int64_t (*decomposed_rel_pos_backward_scratch)(const RelPosBackwardProblem &, int64_t threads);
    void (*decomposed_rel_pos_backward)(const RelPosBackwardProblem &, void *scratch, const ParallelFor &);
    int64_t (*pooling_attention_backward_scratch)(const AttentionBackwardProblem &, int64_t threads);
    void (*pooling_attention_backward)(const AttentionBackwardProblem &, void *scratch, const ParallelFor &);
    // Does nothing but multiply-adds of that dtype, at the kernels' best rate, and says how many.
    int64_t (*multiply_add_peak)(DType, int64_t rounds);
    int64_t (*linear_scratch)(const LinearProblem &, int64_t threads);
    void (*linear)(const LinearProblem &, void *scratch, const ParallelFor &);
    int64_t (*layer_norm_scratch)(const LayerNormProblem &, int64_t threads);
    void (*layer_norm)(const LayerNormProblem &, void *scratch, const ParallelFor &);
    int64_t (*norm_mlp_scratch)(const NormMlpProblem &, int64_t threads);
    void (*norm_mlp)(const NormMlpProblem &, void *scratch, const ParallelFor &);
};

// The highest level this CPU runs, or the one that the environment variable MVIT_KERNELS_CPU_LEVEL names. Chosen at the
// first call. Throws std::runtime_error if the named level is not built in or not supported by this CPU.
const Kernels &kernels();

} // namespace mvit::cpu
