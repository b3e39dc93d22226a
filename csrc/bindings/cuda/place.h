// Where a kernel of csrc/cuda runs: a GPU, or under the emulation this CPU. Each has a file that defines this.
#pragma once

#include "bindings/tensors.h"
#include "cuda/primitives/stream.h"

#include <memory>

namespace mvit::bindings {

// Makes the device of a tensor the current one while it lives.
class Place {
public:
    explicit Place(const Tensor &like);
    ~Place();
    Place(const Place &) = delete;
    Place &operator=(const Place &) = delete;

    mvit::cuda::Stream stream() const; // PyTorch's current one
    void *scratch(int64_t bytes);      // aligned to 256 bytes, for the kernel about to be started

private:
    struct State;
    std::unique_ptr<State> state_;
};

} // namespace mvit::bindings
