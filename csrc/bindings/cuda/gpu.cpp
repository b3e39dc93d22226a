// A place on a GPU, through the stable C interface of torch: nothing here waits for the device.
#include "bindings/cuda/place.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

namespace mvit::bindings {

struct Place::State {
    torch::stable::accelerator::DeviceGuard guard;
    Tensor like;
    Tensor scratch;
};

Place::Place(const Tensor &like)
    : state_(new State{torch::stable::accelerator::DeviceGuard(like.get_device_index()), like, Tensor()}) {}
Place::~Place() = default;

mvit::cuda::Stream Place::stream() const {
    void *stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(state_->like.get_device_index(), &stream));
    return stream;
}

// PyTorch's allocator keeps memory that was freed for later work on the same stream, so it may go when the kernel has
// only been started. It aligns to 512 bytes.
void *Place::scratch(int64_t bytes) {
    if (bytes == 0)
        return nullptr;
    state_->scratch = empty(state_->like, {bytes}, ScalarType::Byte);
    return state_->scratch.mutable_data_ptr();
}

void check_device(const char *op, const char *argument, const Tensor &tensor, const Tensor &like) {
    STD_TORCH_CHECK(tensor.is_cuda(), op, ": ", argument, " is not on a GPU, as the kernel for it is");
    STD_TORCH_CHECK(tensor.get_device_index() == like.get_device_index(), op, ": ", argument, " is on GPU ",
                    tensor.get_device_index(), ", GPU ", like.get_device_index(), " is right");
}

} // namespace mvit::bindings
