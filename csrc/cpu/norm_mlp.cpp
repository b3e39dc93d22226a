// The second half of a block, forward: y = residual + fc2(gelu(fc1(LayerNorm(x)))).
//
//   weights   of both layers packed once per call (linear_product.h)
//   one task  a block of rows: normed, then fc1 with GELU, then fc2 with the residual added. Normed rows and the hidden
//   ones, four
//             times as wide, are of that block alone, in the second-level cache: they never reach memory
// Same sums, in the same order and with the same roundings, as layer_norm, linear and linear one after the other.
//
// Work: 2 * rows * hidden * (in + out) FLOP. Traffic from memory: x, residual and y once, packed weights once per
// block of rows.
#include "cpu/level.h"
#include "cpu/linear_product.h"
#include "cpu/norm_row.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
namespace {

constexpr int64_t kBlockBytes = 768 * 1024; // normed and hidden rows of a task

template <class S> constexpr bool kWidens = sizeof(S) < sizeof(accumulator<S>) && !kPairs<S>;

template <class S> struct Plan {
    using T = accumulator<S>;
    PackedLayer<S> fc1, fc2;
    T *norm_weight, *norm_bias;
    int64_t units, tasks, workers;        // a unit is kLinearRows rows, a task a few units
    int64_t normed_stride, hidden_stride; // in words
    // Per worker.
    int64_t normed_words, hidden_words, narrow_elements, tile_words;
    T *normed, *hidden, *tile;
    S *narrow; // of rows that are widened for the product: what is rounded to S first
};

template <class S> Plan<S> make_plan(const NormMlpProblem &p, int64_t threads, Arena &arena) {
    using T = accumulator<S>;
    Plan<S> plan = {};
    plan.fc1 = take_layer<S>(p.fc1, arena);
    plan.fc2 = take_layer<S>(p.fc2, arena);
    const int64_t padded = round_up(p.fc1.in, lanes<T>);
    plan.norm_weight = arena.take<T>(padded);
    plan.norm_bias = arena.take<T>(padded);
    plan.normed_stride = copied_stride<S>(plan.fc1.words);
    plan.hidden_stride = copied_stride<S>(plan.fc2.words);

    // As many rows to a task as fit, and as many tasks to a worker as to any other.
    plan.units = ceil_div(p.rows, kLinearRows);
    const int64_t unit_bytes = kLinearRows * (plan.normed_stride + plan.hidden_stride) * int64_t(sizeof(T));
    const int64_t fit = clamp(kBlockBytes / unit_bytes, 4, 40);
    plan.workers =
        worker_count(threads, plan.units, 2. * double(p.rows) * double(p.fc1.out) * double(p.fc1.in + p.fc2.out));
    plan.tasks = min(plan.units, plan.workers * ceil_div(plan.units, plan.workers * fit));

    const int64_t rows = ceil_div(plan.units, plan.tasks) * kLinearRows;
    plan.normed_words = rows * plan.normed_stride;
    plan.hidden_words = rows * plan.hidden_stride;
    plan.tile_words = rows * kPanel<T>;
    plan.narrow_elements = kWidens<S> ? rows * max(p.fc1.in, p.fc1.out) : 0;
    plan.normed = arena.take<T>(plan.workers * plan.normed_words);
    plan.hidden = arena.take<T>(plan.workers * plan.hidden_words);
    plan.tile = arena.take<T>(plan.workers * plan.tile_words);
    plan.narrow = arena.take<S>(plan.workers * plan.narrow_elements);
    return plan;
}

// Calls write(rows, distance) for `rows` rows of `elements` each, in S, which it leaves in `words` as the product
// reads them: there in the first place, or by way of `narrow`.
template <class S, class F>
void as_words(int64_t rows, int64_t elements, S *narrow, accumulator<S> *words, int64_t stride, const F &write) {
    if constexpr (kWidens<S>) {
        write(narrow, elements);
        copy_rows(narrow, elements, rows, elements, words, stride);
    } else {
        S *const to = reinterpret_cast<S *>(words);
        const int64_t distance = stride * kPair<S>;
        write(to, distance);
        if (elements % kPair<S>)
            for (int64_t r = 0; r < rows; ++r)
                to[r * distance + elements] = S{};
    }
}

template <class S, class X, class O>
void run(const NormMlpProblem &p, const Plan<S> &plan, const ParallelFor &parallel) {
    for_each_task(parallel, plan.workers, plan.tasks, [&](int64_t worker, int64_t task) {
        const int64_t first = plan.units * task / plan.tasks * kLinearRows;
        const int64_t rows = min(plan.units * (task + 1) / plan.tasks * kLinearRows, p.rows) - first;
        const X *const x = static_cast<const X *>(p.x) + first * p.x_stride;
        auto *const normed = plan.normed + worker * plan.normed_words;
        auto *const hidden = plan.hidden + worker * plan.hidden_words;
        auto *const tile = plan.tile + worker * plan.tile_words;
        S *const narrow = plan.narrow + worker * plan.narrow_elements;
        as_words<S>(rows, p.fc1.in, narrow, normed, plan.normed_stride, [&](S *to, int64_t distance) {
            for (int64_t r = 0; r < rows; ++r)
                norm_row(x + r * p.x_stride, p.fc1.in, plan.norm_weight, plan.norm_bias, p.eps, to + r * distance);
        });
        as_words<S>(rows, p.fc1.out, narrow, hidden, plan.hidden_stride, [&](S *to, int64_t distance) {
            multiply_rows<S, S>(p.fc1, plan.fc1, 0, plan.fc1.panels, normed, plan.normed_stride, rows, tile,
                                Activation::gelu, nullptr, 0, to, distance);
        });
        multiply_rows<S, O>(p.fc2, plan.fc2, 0, plan.fc2.panels, hidden, plan.hidden_stride, rows, tile,
                            Activation::none, static_cast<const O *>(p.residual) + first * p.residual_stride,
                            p.residual_stride, static_cast<O *>(p.y) + first * p.fc2.out, p.fc2.out);
    });
}

} // namespace

int64_t norm_mlp_scratch(const NormMlpProblem &p, int64_t threads) {
    Arena arena(nullptr);
    with_storage(p.dtype, [&](auto storage) { make_plan<decltype(storage)>(p, threads, arena); });
    return arena.used();
}

void norm_mlp(const NormMlpProblem &p, void *scratch, const ParallelFor &parallel) {
    with_storage(p.dtype, [&](auto storage) {
        using S = decltype(storage);
        using T = accumulator<S>;
        Arena arena(scratch);
        const Plan<S> plan = make_plan<S>(p, parallel.threads, arena);
        read_norm(p.norm_weight, p.norm_bias, p.fc1.in, plan.norm_weight, plan.norm_bias);
        const int64_t panels = plan.fc1.panels + plan.fc2.panels;
        for_each_task(parallel, worker_count(parallel.threads, panels, packing_cost(p.fc1) + packing_cost(p.fc2)),
                      panels, [&](int64_t, int64_t panel) {
                          if (panel < plan.fc1.panels)
                              pack_panel_of<S>(p.fc1, p.dtype, plan.fc1, panel);
                          else
                              pack_panel_of<S>(p.fc2, p.dtype, plan.fc2, panel - plan.fc1.panels);
                      });
        const auto with = [&](DType dtype, const auto &f) { dtype == p.dtype ? f(S{}) : f(T{}); };
        with(p.x_dtype,
             [&](auto x) { with(p.y_dtype, [&](auto y) { run<S, decltype(x), decltype(y)>(p, plan, parallel); }); });
    });
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
