// The launches of one instantiation each, defined in files of their own (csrc/cuda/instantiations): compiled by nvcc
// into the library, by a host compiler into the emulation.
#pragma once

#include "common/attention_backward_tiles.h"
#include "common/pool_backward_tiles.h"
#include "common/rel_pos_backward_tiles.h"
#include "cuda/kernels.h"

namespace mvit::cuda {

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
