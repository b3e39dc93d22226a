// LayerNorm over channels, forward. One task: rows of some tens of kilobytes.
#include "common/linear.h"
#include "cpu/level.h"
#include "cpu/norm_row.h"
#include "cpu/parallel.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
namespace {

template <class S, class O> void run(const LayerNormProblem &p, accumulator<S> *memory, const ParallelFor &parallel) {
    using T = accumulator<S>;
    const int64_t padded = round_up(p.channels, lanes<T>);
    T *const weight = memory, *const bias = memory + padded;
    read_norm(p.weight, p.bias, p.channels, weight, bias);
    const int64_t block = max(1, 16384 / p.channels), tasks = ceil_div(p.rows, block);
    const int64_t workers = worker_count(parallel.threads, tasks, 16. * double(p.rows) * double(p.channels));
    for_each_task(parallel, workers, tasks, [&](int64_t, int64_t task) {
        for (int64_t r = task * block; r < min(p.rows, (task + 1) * block); ++r)
            norm_row(static_cast<const S *>(p.x) + r * p.x_stride, p.channels, weight, bias, p.eps,
                     static_cast<O *>(p.y) + r * p.channels);
    });
}

} // namespace

int64_t layer_norm_scratch(const LayerNormProblem &p, int64_t) {
    return 2 * (p.channels + kVectorBytes) * int64_t(size_of_accumulator(p.dtype));
}

void layer_norm(const LayerNormProblem &p, void *scratch, const ParallelFor &parallel) {
    with_storage(p.dtype, [&](auto storage) {
        using S = decltype(storage);
        auto *const memory = static_cast<accumulator<S> *>(scratch);
        if (p.y_dtype == p.dtype)
            run<S, S>(p, memory, parallel);
        else if (p.y_dtype == DType::bf16)
            run<float, bf16>(p, static_cast<float *>(scratch), parallel);
        else
            run<float, f16>(p, static_cast<float *>(scratch), parallel);
    });
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
