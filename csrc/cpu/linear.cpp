// Linear layer, forward: y = activation(x W^T + b) + residual, by linear_product.h.
//
// One task: a block of rows that stays in the second-level cache, and a group of panels.
// Work: 2 * rows * in * out FLOP. Traffic from memory: x and y once per task, packed weights once per block of rows.
#include "cpu/level.h"
#include "cpu/linear_product.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
namespace {

constexpr int64_t kBlockBytes = 256 * 1024; // rows of a task

template <class S> struct Plan {
    using T = accumulator<S>;
    PackedLayer<S> packed;
    int64_t block_rows, row_blocks, groups, workers;
    bool copies;
    int64_t stride; // of a row as the product reads it, in words
    T *rows, *tile; // per worker

    int64_t tile_words() const { return block_rows * kPanel<T>; }
    int64_t rows_words() const { return copies ? block_rows * stride : 0; }
};

template <class S> Plan<S> make_plan(const LinearProblem &p, int64_t threads, Arena &arena) {
    using T = accumulator<S>;
    Plan<S> plan;
    plan.packed = take_layer<S>(p.layer, arena);
    const int64_t in = p.layer.in, words = plan.packed.words;
    plan.stride = p.x_stride / kPair<S>;
    const bool widens = sizeof(S) < sizeof(T) && !kPairs<S>;
    plan.copies =
        widens || in % kPair<S> || p.x_stride % kPair<S> || plan.stride * int64_t(sizeof(T)) % kAliasBytes == 0;
    if (plan.copies)
        plan.stride = copied_stride<S>(words);
    const int64_t fit = kBlockBytes / int64_t(words * sizeof(T)) / kLinearRows;
    plan.block_rows = min(clamp(fit, 4, 40), ceil_div(p.rows, kLinearRows)) * kLinearRows;
    plan.row_blocks = ceil_div(p.rows, plan.block_rows);
    const double flop = 2. * double(p.rows) * double(in) * double(p.layer.out);
    const int64_t workers = clamp(int64_t(flop / kFlopPerWorker), 1, threads);
    plan.groups = workers == 1 ? 1 : clamp(ceil_div(8 * workers, plan.row_blocks), 1, plan.packed.panels);
    plan.workers = worker_count(threads, plan.row_blocks * plan.groups, flop);
    plan.rows = arena.take<T>(plan.workers * plan.rows_words());
    plan.tile = arena.take<T>(plan.workers * plan.tile_words());
    return plan;
}

template <class S, class O> void multiply(const LinearProblem &p, const Plan<S> &plan, const ParallelFor &parallel) {
    using T = accumulator<S>;
    const auto task = [&](int64_t worker, int64_t index) {
        const int64_t row = index / plan.groups * plan.block_rows, group = index % plan.groups;
        const int64_t rows = min(plan.block_rows, p.rows - row);
        const T *x = reinterpret_cast<const T *>(static_cast<const S *>(p.x) + row * p.x_stride);
        if (plan.copies) {
            T *const copy = plan.rows + worker * plan.rows_words();
            copy_rows(static_cast<const S *>(p.x) + row * p.x_stride, p.x_stride, rows, p.layer.in, copy, plan.stride);
            x = copy;
        }
        const int64_t panels = plan.packed.panels;
        multiply_rows<S, O>(p.layer, plan.packed, panels * group / plan.groups, panels * (group + 1) / plan.groups, x,
                            plan.stride, rows, plan.tile + worker * plan.tile_words(), p.activation,
                            p.residual ? static_cast<const O *>(p.residual) + row * p.residual_stride : nullptr,
                            p.residual_stride, static_cast<O *>(p.y) + row * p.layer.out, p.layer.out);
    };
    for_each_task(parallel, plan.workers, plan.row_blocks * plan.groups, task);
}

} // namespace

int64_t linear_scratch(const LinearProblem &p, int64_t threads) {
    Arena arena(nullptr);
    with_storage(p.dtype, [&](auto storage) { make_plan<decltype(storage)>(p, threads, arena); });
    return arena.used();
}

void linear(const LinearProblem &p, void *scratch, const ParallelFor &parallel) {
    with_storage(p.dtype, [&](auto storage) {
        using S = decltype(storage);
        using T = accumulator<S>;
        Arena arena(scratch);
        const Plan<S> plan = make_plan<S>(p, parallel.threads, arena);
        const int64_t panels = plan.packed.panels;
        for_each_task(parallel, worker_count(parallel.threads, panels, packing_cost(p.layer)), panels,
                      [&](int64_t, int64_t panel) { pack_panel_of<S>(p.layer, p.dtype, plan.packed, panel); });
        if (p.y_dtype == p.dtype)
            multiply<S, S>(p, plan, parallel);
        else
            multiply<S, T>(p, plan, parallel);
    });
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
