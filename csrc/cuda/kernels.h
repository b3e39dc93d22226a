// The CUDA kernels as their callers see them: functions of a problem, on a stream. No torch, and no CUDA headers.
//
// A call only starts kernels, on the current device; it waits for nothing and allocates nothing. Every pointer in a
// problem is to memory of that device. A function returns nullptr, or why nothing was started. What the kernels take is
// said here and in common/limits.h, and it is the caller's to check.
#pragma once

#include "common/backward.h"
#include "common/pooled_query.h"
#include "cuda/primitives/stream.h"

namespace mvit::cuda {

// Pointers and strides of q, k and v must be multiples of 16 bytes, the head dim one of 8; float16, bfloat16 or
// float32.
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

} // namespace mvit::cuda
