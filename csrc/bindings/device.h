// What differs between the libraries that the bindings are compiled into: one for CPU tensors, one for CUDA tensors.
// Each has a folder here that defines these. The build gives MVIT_OPS, the namespace of the ops, and
// MVIT_DISPATCH_KEY, the tensors they serve.
#pragma once

#include "common/backward.h"

#include <torch/csrc/stable/tensor.h>

namespace mvit::bindings {

using torch::stable::Tensor;

// Refuses a tensor that is not where the kernels run, or not on the device of `like`.
void check_device(const char *op, const char *argument, const Tensor &tensor, const Tensor &like);

// How the kernels read memory: a pointer to rows of channels or to a parameter is a multiple of `bytes`, a stride of
// rows of channels is one of `channels`, and so is the head dim. 1 where anything will do.
struct Access {
    int64_t bytes, channels;
};
Access access();

// Run a checked problem that has work in it; `like` says on which device.
void run(const char *op, const Tensor &like, const PoolProblem &problem);
void run(const char *op, const Tensor &like, const PoolBackwardProblem &problem);
void run(const char *op, const Tensor &like, const RelPosProblem &problem);
void run(const char *op, const Tensor &like, const RelPosBackwardProblem &problem);
void run(const char *op, const Tensor &like, const AttentionProblem &problem);
void run(const char *op, const Tensor &like, const AttentionBackwardProblem &problem);

} // namespace mvit::bindings
