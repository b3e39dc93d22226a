#include "cuda/launchers.h"
#include "cuda/primitives/channels.h"
#include "cuda/primitives/device.h"

#include <type_traits>

namespace mvit::cuda {
namespace {

template <class T, int kDim> const char *of_dim(const AttentionBackwardWork &w, Stream stream) {
    if constexpr (std::is_same_v<T, f32>)
        return launch_pooling_attention_backward_float32<kDim>(w, stream);
    else
        return launch_pooling_attention_backward<T, kDim>(w, stream);
}

template <class T> const char *kernels_of_dim(const AttentionBackwardWork &w, Stream stream) {
    switch (attention_dim(w.gradients.forward.head_dim)) {
    case 48:
        return of_dim<T, 48>(w, stream);
    case 64:
        return of_dim<T, 64>(w, stream);
    case 80:
        return of_dim<T, 80>(w, stream);
    case 96:
        return of_dim<T, 96>(w, stream);
    case 128:
        return of_dim<T, 128>(w, stream);
    default:
        return "no kernel for this head dim";
    }
}

template <class T> const char *of_type(const AttentionBackwardWork &w, Stream stream) {
    const char *const reason = kernels_of_dim<T>(w, stream);
    return reason ? reason : launch_attention_grad_sum<T>(w, stream);
}

} // namespace

int64_t pooling_attention_backward_scratch(const AttentionBackwardProblem &p) {
    return attention_backward_plan(p, multiprocessors()).total_bytes;
}

const char *pooling_attention_backward(const AttentionBackwardProblem &p, void *scratch, Stream stream) {
    if (!p.q && !p.k && !p.v && !p.rel_pos)
        return nullptr;
    const AttentionBackwardWork work = {p, attention_backward_plan(p, multiprocessors()), static_cast<char *>(scratch),
                                        false};
    switch (p.forward.dtype) {
    case DType::f16:
        return of_type<f16>(work, stream);
    case DType::bf16:
        return of_type<bf16>(work, stream);
    case DType::f32:
        return of_type<f32>(work, stream);
    default:
        return "no kernel for this dtype";
    }
}

} // namespace mvit::cuda
