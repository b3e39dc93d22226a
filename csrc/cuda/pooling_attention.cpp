// The forward of pooling attention as launches: one for all keys, or one for the parts and one that adds them up.
#include "cuda/launchers.h"
#include "cuda/primitives/channels.h"
#include "cuda/primitives/device.h"

namespace mvit::cuda {
namespace {

template <class T, int kDim> const char *parts_of_dim(const AttentionForward &f, Stream stream) {
    if constexpr (std::is_same_v<T, f32>)
        return launch_pooling_attention_float32<kDim>(f, stream);
    else
        return launch_pooling_attention<T, kDim>(f, stream);
}

template <class T> const char *parts_of_type(const AttentionForward &f, Stream stream) {
    switch (attention_dim(f.p.head_dim)) {
    case 48:
        return parts_of_dim<T, 48>(f, stream);
    case 64:
        return parts_of_dim<T, 64>(f, stream);
    case 80:
        return parts_of_dim<T, 80>(f, stream);
    case 96:
        return parts_of_dim<T, 96>(f, stream);
    case 128:
        return parts_of_dim<T, 128>(f, stream);
    default:
        return "no kernel for this head dim";
    }
}

template <class T> const char *attention_of_type(const AttentionForward &f, Stream stream) {
    const char *const reason = parts_of_type<T>(f, stream);
    return reason || f.splits == 1 ? reason : launch_attention_combine<T>(f, stream);
}

template <class T> const char *pooled_query_of_type(const PooledQueryForward &f, Stream stream) {
    switch (attention_dim(f.attention.p.head_dim)) {
    case 48:
        return launch_pooled_query_attention<T, 48>(f, stream);
    case 64:
        return launch_pooled_query_attention<T, 64>(f, stream);
    case 80:
        return launch_pooled_query_attention<T, 80>(f, stream);
    case 96:
        return launch_pooled_query_attention<T, 96>(f, stream);
    default:
        return launch_pooled_query_attention<T, 128>(f, stream);
    }
}

} // namespace

int64_t pooling_attention_forward_scratch(const AttentionProblem &p) {
    return attention_dim(p.head_dim) ? attention_scratch_bytes(attention_forward(p, multiprocessors())) : 0;
}

const char *pooling_attention_forward(const AttentionProblem &p, void *scratch, Stream stream) {
    if (!attention_dim(p.head_dim))
        return "no kernel for this head dim";
    AttentionForward f = attention_forward(p, multiprocessors());
    f.parts = static_cast<float *>(scratch);
    switch (p.dtype) {
    case DType::f16:
        return attention_of_type<f16>(f, stream);
    case DType::bf16:
        return attention_of_type<bf16>(f, stream);
    case DType::f32:
        return attention_of_type<f32>(f, stream);
    default:
        return "no kernel for this dtype";
    }
}

const char *pooled_query_attention_forward(const PooledQueryProblem &p, Stream stream) {
    if (const char *const reason = pooled_query_not_supported(p))
        return reason;
    const PooledQueryForward f = pooled_query_forward(p);
    return p.attention.dtype == DType::f16 ? pooled_query_of_type<f16>(f, stream)
                                           : pooled_query_of_type<bf16>(f, stream);
}

} // namespace mvit::cuda
