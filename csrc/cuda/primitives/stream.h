// A CUDA stream, for code that is not compiled by nvcc too.
#pragma once

namespace mvit::cuda {

// cudaStream_t; under the emulation, where a launch runs at once, the address of the seed.
using Stream = const void *;

} // namespace mvit::cuda
