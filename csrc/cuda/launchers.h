// The kernels as functions of a checked problem. Compiled by nvcc into the library, by a host compiler into the
// emulation.
#pragma once

#include "common/attention_tiles.h"
#include "cuda/primitives/launch.h"

namespace mvit::cuda {

// Pointers and strides of q, k and v must be multiples of 16 bytes, the head dim one of 8; float16 or bfloat16.
// Returns nullptr, or why nothing was started.
const char *pooling_attention_forward(const AttentionProblem &p, Stream stream);

// One instantiation, defined in a file of its own (csrc/cuda/instantiations).
template <class T, int kDim> const char *launch_pooling_attention(const AttentionProblem &p, Stream stream);

} // namespace mvit::cuda
