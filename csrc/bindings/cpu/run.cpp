// What bindings/device.h asks for, for CPU tensors.
#include "bindings/cpu/run.h"

namespace mvit::bindings {

void check_device(const char *op, const char *argument, const Tensor &tensor, const Tensor &) {
    STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", argument, " is not on the CPU, as the kernel for it is");
}

Access access() { return {1, 1}; }

cpu::ParallelFor parallel_for() {
    const auto run = [](int64_t count, cpu::ParallelFor::Body body, const void *context) {
        torch::stable::parallel_for(0, count, 1, [=](int64_t begin, int64_t end) { body(context, begin, end); });
    };
    return {run, int64_t(torch::stable::get_num_threads())};
}

void run(const char *, const Tensor &like, const PoolProblem &problem) {
    run_kernel(like, problem, cpu::kernels().pool3d_norm_scratch, cpu::kernels().pool3d_norm);
}

void run(const char *, const Tensor &like, const PoolBackwardProblem &problem) {
    run_kernel(like, problem, cpu::kernels().pool3d_norm_backward_scratch, cpu::kernels().pool3d_norm_backward);
}

void run(const char *, const Tensor &like, const RelPosProblem &problem) {
    run_kernel(like, problem, cpu::kernels().decomposed_rel_pos_scratch, cpu::kernels().decomposed_rel_pos);
}

void run(const char *, const Tensor &like, const RelPosBackwardProblem &problem) {
    run_kernel(like, problem, cpu::kernels().decomposed_rel_pos_backward_scratch,
               cpu::kernels().decomposed_rel_pos_backward);
}

void run(const char *, const Tensor &like, const AttentionProblem &problem) {
    run_kernel(like, problem, cpu::kernels().pooling_attention_scratch, cpu::kernels().pooling_attention);
}

void run(const char *, const Tensor &like, const AttentionBackwardProblem &problem) {
    run_kernel(like, problem, cpu::kernels().pooling_attention_backward_scratch,
               cpu::kernels().pooling_attention_backward);
}

} // namespace mvit::bindings
