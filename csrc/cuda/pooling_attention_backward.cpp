#include "cuda/launchers.h"
#include "cuda/primitives/numbers.h"

namespace mvit::cuda {
namespace {

template <class T> const char *of_type(const AttentionBackwardWork &w, Stream stream) {
    switch (attention_dim(w.gradients.forward.head_dim)) {
    case 48:
        return launch_pooling_attention_backward<T, 48>(w, stream);
    case 64:
        return launch_pooling_attention_backward<T, 64>(w, stream);
    case 80:
        return launch_pooling_attention_backward<T, 80>(w, stream);
    case 96:
        return launch_pooling_attention_backward<T, 96>(w, stream);
    case 128:
        return launch_pooling_attention_backward<T, 128>(w, stream);
    default:
        return "no kernel for this head dim";
    }
}

} // namespace

int64_t pooling_attention_backward_scratch(const AttentionBackwardProblem &p) {
    return attention_backward_plan(p).total_bytes;
}

const char *pooling_attention_backward(const AttentionBackwardProblem &p, void *scratch, Stream stream) {
    if (!p.q && !p.k && !p.v && !p.rel_pos)
        return nullptr;
    const AttentionBackwardWork work = {p, attention_backward_plan(p), static_cast<char *>(scratch)};
    const bool is_bf16 = p.forward.dtype == DType::bf16;
    if (!is_bf16 && p.forward.dtype != DType::f16)
        return "no kernel for this dtype";
    if (const char *const reason = is_bf16 ? of_type<bf16>(work, stream) : of_type<f16>(work, stream))
        return reason;
    if (work.plan.parts == 1)
        return nullptr;
    return is_bf16 ? launch_attention_grad_sum<bf16>(work, stream) : launch_attention_grad_sum<f16>(work, stream);
}

} // namespace mvit::cuda
