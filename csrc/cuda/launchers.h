// The kernels as functions of a checked problem. Compiled by nvcc into the library, by a host compiler into the
// emulation.
#pragma once

#include "common/attention_backward_tiles.h"
#include "common/pool_backward_tiles.h"
#include "common/pooled_query.h"
#include "common/rel_pos_backward_tiles.h"
#include "cuda/primitives/stream.h"

namespace mvit::cuda {

// Pointers and strides of q, k and v must be multiples of 16 bytes, the head dim one of 8; float16, bfloat16 or
// float32. Returns nullptr, or why nothing was started.
//
// `scratch` is device memory of as many bytes as the function beside it says, for the device that is current in both
// calls, aligned to 256.
int64_t pooling_attention_forward_scratch(const AttentionProblem &p);
const char *pooling_attention_forward(const AttentionProblem &p, void *scratch, Stream stream);

// The same of grad_out, and of the gradients that go out.
int64_t pooling_attention_backward_scratch(const AttentionBackwardProblem &p);
const char *pooling_attention_backward(const AttentionBackwardProblem &p, void *scratch, Stream stream);

// The strides of x must be multiples of 8 channels, its pointer of 16 bytes; head dim a multiple of 8, 128 at most
// with a norm; float16, bfloat16 or float32.
const char *pool3d_norm_forward(const PoolProblem &p, Stream stream);

// Every stride of the gradients too, and every pointer of 16 bytes; the window of a maximum has at most 65536 taps.
// Parameters and their gradients in float16, bfloat16 or float32. The same bits on every device.
int64_t pool3d_norm_backward_scratch(const PoolBackwardProblem &p);
const char *pool3d_norm_backward(const PoolBackwardProblem &p, void *scratch, Stream stream);

// The same of q and the tables.
const char *decomposed_rel_pos_forward(const RelPosProblem &p, Stream stream);

// The incoming gradient, float32, may have any strides.
int64_t decomposed_rel_pos_backward_scratch(const RelPosBackwardProblem &p);
const char *decomposed_rel_pos_backward(const RelPosBackwardProblem &p, void *scratch, Stream stream);

// pooling_attention of q before its pooling, which happens inside. k, v and x as above.
const char *pooled_query_attention_forward(const PooledQueryProblem &p, Stream stream);

// One instantiation, defined in a file of its own (csrc/cuda/instantiations).
template <class T, int kDim> const char *launch_pooling_attention(const AttentionForward &f, Stream stream);
template <int kDim> const char *launch_pooling_attention_float32(const AttentionForward &f, Stream stream);
template <class T, int kDim> const char *launch_pooled_query_attention(const PooledQueryForward &f, Stream stream);
template <class T> const char *launch_attention_combine(const AttentionForward &f, Stream stream);
template <class T, int kDim>
const char *launch_pooling_attention_backward(const AttentionBackwardWork &w, Stream stream);
template <int kDim>
const char *launch_pooling_attention_backward_float32(const AttentionBackwardWork &w, Stream stream);
template <class T> const char *launch_attention_grad_sum(const AttentionBackwardWork &w, Stream stream);
template <class T> const char *launch_pool3d_norm(const PoolPlan &plan, Stream stream);
template <class T> const char *launch_decomposed_rel_pos(const RelPosProblem &p, Stream stream);
template <class T> const char *launch_pool3d_norm_backward(const PoolBackwardPlan &plan, Stream stream);
template <class T> const char *launch_decomposed_rel_pos_backward(const RelPosBackwardPlan &plan, Stream stream);

} // namespace mvit::cuda
