// A place for the CUDA kernels on this CPU: libmvit_kernels_emulated.so serves CPU tensors, for the tests.
#include "bindings/cuda/place.h"

#include <cstring>
#include <new>

namespace mvit::bindings {

struct Place::State {
    uint64_t seed;
    void *scratch = nullptr;
};

// Every launch runs its threads in another order.
Place::Place(const Tensor &) : state_(new State{}) {
    static uint64_t launches = 0;
    state_->seed = ++launches;
}

Place::~Place() {
    if (state_->scratch)
        ::operator delete(state_->scratch, std::align_val_t(256));
}

mvit::cuda::Stream Place::stream() const { return &state_->seed; }

// Bytes of 0xff, which are NaN in every dtype.
void *Place::scratch(int64_t bytes) {
    if (bytes == 0)
        return nullptr;
    state_->scratch = ::operator new(size_t(bytes), std::align_val_t(256));
    return std::memset(state_->scratch, 0xff, size_t(bytes));
}

void check_device(const char *op, const char *argument, const Tensor &tensor, const Tensor &) {
    STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", argument, " is not on the CPU, as the emulation is");
}

} // namespace mvit::bindings
