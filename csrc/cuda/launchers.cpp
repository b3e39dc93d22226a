#include "cuda/launchers.h"
#include "cuda/primitives/channels.h"

namespace mvit::cuda {
namespace {

template <class T> const char *attention_of_type(const AttentionProblem &p, Stream stream) {
    switch (attention_dim(p.head_dim)) {
    case 48:
        return launch_pooling_attention<T, 48>(p, stream);
    case 64:
        return launch_pooling_attention<T, 64>(p, stream);
    case 80:
        return launch_pooling_attention<T, 80>(p, stream);
    case 96:
        return launch_pooling_attention<T, 96>(p, stream);
    case 128:
        return launch_pooling_attention<T, 128>(p, stream);
    default:
        return "no kernel for this head dim";
    }
}

} // namespace

int64_t pooling_attention_forward_scratch(const AttentionProblem &) { return 0; }

const char *pooling_attention_forward(const AttentionProblem &p, void *, Stream stream) {
    switch (p.dtype) {
    case DType::f16:
        return attention_of_type<f16>(p, stream);
    case DType::bf16:
        return attention_of_type<bf16>(p, stream);
    default:
        return "no kernel for this dtype";
    }
}

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
