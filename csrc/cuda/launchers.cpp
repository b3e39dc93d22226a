#include "cuda/launchers.h"
#include "cuda/primitives/channels.h"

namespace mvit::cuda {
const char *pool3d_norm_forward(const PoolProblem &p, Stream stream) {
    switch (p.dtype) {
    case DType::f16:
        return launch_pool3d_norm<f16>(p, stream);
    case DType::bf16:
        return launch_pool3d_norm<bf16>(p, stream);
    case DType::f32:
        return launch_pool3d_norm<f32>(p, stream);
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

} // namespace mvit::cuda
