#include "cuda/launchers.h"
#include "cuda/primitives/channels.h"

namespace mvit::cuda {
const char *pool3d_norm_forward(const PoolProblem &p, Stream stream) {
    const PoolPlan plan = pool_plan(p);
    switch (p.dtype) {
    case DType::f16:
        return launch_pool3d_norm<f16>(plan, stream);
    case DType::bf16:
        return launch_pool3d_norm<bf16>(plan, stream);
    case DType::f32:
        return launch_pool3d_norm<f32>(plan, stream);
    default:
        return "no kernel for this dtype";
    }
}

const char *decomposed_rel_pos_forward(const RelPosProblem &p, Stream stream) {
    switch (p.dtype) {
    case DType::f16:
        return launch_decomposed_rel_pos<f16>(p, stream);
    case DType::bf16:
        return launch_decomposed_rel_pos<bf16>(p, stream);
    case DType::f32:
        return launch_decomposed_rel_pos<f32>(p, stream);
    default:
        return "no kernel for this dtype";
    }
}

int64_t pool3d_norm_backward_scratch(const PoolBackwardProblem &p) { return pool_backward_plan(p, nullptr).bytes; }

const char *pool3d_norm_backward(const PoolBackwardProblem &p, void *scratch, Stream stream) {
    for (int i = 0; i < p.forward.branches; ++i)
        if (p.forward.branch[i].mode == PoolMode::max && volume(p.forward.branch[i].kernel) > kMaxWindow)
            return "no kernel for a window this large";
    const PoolBackwardPlan plan = pool_backward_plan(p, scratch);
    switch (p.forward.dtype) {
    case DType::f16:
        return launch_pool3d_norm_backward<f16>(plan, stream);
    case DType::bf16:
        return launch_pool3d_norm_backward<bf16>(plan, stream);
    case DType::f32:
        return launch_pool3d_norm_backward<f32>(plan, stream);
    default:
        return "no kernel for this dtype";
    }
}

int64_t decomposed_rel_pos_backward_scratch(const RelPosBackwardProblem &p) {
    return rel_pos_backward_plan(p, nullptr).bytes;
}

const char *decomposed_rel_pos_backward(const RelPosBackwardProblem &p, void *scratch, Stream stream) {
    const RelPosBackwardPlan plan = rel_pos_backward_plan(p, scratch);
    switch (p.forward.dtype) {
    case DType::f16:
        return launch_decomposed_rel_pos_backward<f16>(plan, stream);
    case DType::bf16:
        return launch_decomposed_rel_pos_backward<bf16>(plan, stream);
    case DType::f32:
        return launch_decomposed_rel_pos_backward<f32>(plan, stream);
    default:
        return "no kernel for this dtype";
    }
}

} // namespace mvit::cuda
