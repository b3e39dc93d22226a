// Writing gradients of parameters, in a dtype of their own, from sums in the accumulation type.
#pragma once

#include "common/backward.h"
#include "cpu/simd.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

MVIT_INLINE void store_scalar(float *to, double x) { *to = float(x); }
MVIT_INLINE void store_scalar(double *to, double x) { *to = x; }
template <class S> MVIT_INLINE void store_scalar(S *to, double x) { store_partial(to, broadcast<float>(float(x)), 1); }

// to[first + i * step] = from[i], i < n
template <class T>
static void write_gradient(ParameterGradient to, int64_t first, int64_t step, const T *from, int64_t n) {
    with_storage(to.dtype, [&](auto storage) {
        auto *const p = static_cast<decltype(storage) *>(to.data) + first;
        for (int64_t i = 0; i < n; ++i)
            store_scalar(p + i * step, from[i]);
    });
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
