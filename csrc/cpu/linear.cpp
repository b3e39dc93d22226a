// Linear layer, forward: y = activation(x W^T + b) + residual.
//
//   weights            once per call into panels of kPanel outputs, [k][output]: rounded to x's dtype, 1 / rows of the
//                      work, so that no packed copy outlives a call and none can be stale
//   one task           a block of rows that stays in the second-level cache, and a group of panels
//     for each panel, for each chunk of kChunk inputs (a slice that stays in cache while all rows pass):
//       kLinearRows rows x kPanel outputs in registers; one row element is broadcast per step, read in place
//       sums of chunks are added up in a tile, which keeps the rounding of a long sum that of its parts
//     behind the last chunk bias and residual, from the registers, or an activation on the tile; rounded once
//   bfloat16           with AVX512-BF16: a step is a pair of inputs (vdpbf16ps); elsewhere, and for float16, rows of
//                      the block are widened to float32 first
// Work: 2 * rows * in * out FLOP. Traffic from memory: x and y once per task, packed weights once per block of rows.
#include "cpu/gelu.h"
#include "cpu/level.h"
#include "cpu/parallel.h"
#include "cpu/products.h"
#include "cpu/simd.h"

#include <type_traits>

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
namespace {

#if defined(__AVX512F__)
constexpr int kLinearRows = 12;
#else
constexpr int kLinearRows = kRows;
#endif
constexpr int64_t kChunk = 192;             // steps between two additions to the tile: a longer chain rounds more
constexpr int64_t kNarrowChunk = 16;        // the same where a panel is not full and its speed no matter: less rounding
constexpr int64_t kBlockBytes = 256 * 1024; // rows of a task
constexpr int64_t kAliasBytes = 1024;       // rows this far apart share a few sets of the first-level cache

// A step takes a word from a row: an element, or a pair of bfloat16 (pairs.h).
template <class S> constexpr bool kPairs = kPair<S> == 2;

// ---- Packing ----

// Lanes of 16-bit storage as the words of a step.
template <class S, class W> MVIT_INLINE vec<accumulator<S>> load_words(const W *p, int64_t n) {
    using T = accumulator<S>;
    constexpr int L = lanes<T>;
    if constexpr (kPairs<S>) {
#if defined(__AVX512BF16__)
        if (n >= 2 * L) {
            if constexpr (std::is_same_v<W, bf16>)
                return load(reinterpret_cast<const float *>(p));
            else
                return round_both(load(p), load(p + L));
        }
#endif
        struct {
            halves half[2];
        } both = {};
        for (int i = 0; i < 2; ++i)
            if (n > i * L)
                both.half[i] = narrow(bf16{}, load_first(p + i * L, n - i * L));
        return bits_as<vec<T>>(both);
    } else if constexpr (std::is_same_v<S, W> || std::is_same_v<S, T>) {
        return load_first(p, n);
    } else {
        return widen(S{}, narrow(S{}, load_first(p, n))); // rounded to what x is made of
    }
}

// One panel, W[n][k] with unit stride in k: to[step][output]. Outputs from `outputs` on repeat the last one.
template <class S, class W>
void pack_panel_from_rows(const W *from, int64_t stride, int64_t outputs, int64_t in, accumulator<S> *to) {
    using T = accumulator<S>;
    constexpr int L = lanes<T>;
    constexpr int64_t step = L * kPair<S>; // inputs of a square block
    const int64_t words = ceil_div(in, kPair<S>);
    for (int64_t first = 0; first < kPanel<T>; first += L)
        for (int64_t k = 0, word = 0; k < in; k += step, word += L) {
            vec<T> block[L];
#pragma GCC unroll 16
            for (int j = 0; j < L; ++j)
                block[j] = load_words<S>(from + min(first + j, outputs - 1) * stride + k, in - k);
            transpose<T>(block);
            for (int64_t j = 0; j < min(L, words - word); ++j)
                store(to + (word + j) * kPanel<T> + first, block[j]);
        }
}

// The same with unit stride over the outputs.
template <class S, class W>
void pack_panel_from_columns(const W *from, int64_t stride, int64_t outputs, int64_t in, accumulator<S> *to) {
    using T = accumulator<S>;
    constexpr int L = lanes<T>;
    for (int64_t first = 0; first < kPanel<T>; first += L) {
        const W *const p = from + first;
        const int64_t n = outputs - first;
        if (n < 1) {
            for (int64_t k = 0; k < ceil_div(in, kPair<S>); ++k)
                store(to + k * kPanel<T> + first, vec<T>{});
            continue;
        }
        if constexpr (kPairs<S>) {
            for (int64_t k = 0; k < in; k += 2) {
                const auto bits = [&](int64_t row) {
                    return zero_extend(narrow(bf16{}, load_first(p + row * stride, n)));
                };
                const uvec<T> low = bits(k), high = k + 1 < in ? bits(k + 1) : uvec<T>{};
                store(to + k / 2 * kPanel<T> + first, bits_as<vec<T>>(low | high << 16));
            }
        } else {
            for (int64_t k = 0; k < in; ++k)
                store(to + k * kPanel<T> + first, load_words<S>(p + k * stride, n));
        }
    }
}

// Rows of x as words, `stride` apart; the second half of a last lone bfloat16 is 0.
template <class S>
void copy_rows(const S *from, int64_t from_stride, int64_t rows, int64_t in, accumulator<S> *to, int64_t stride) {
    using T = accumulator<S>;
    constexpr int64_t step = lanes<T> * kPair<S>;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t k = 0; k < in; k += step)
            store(to + r * stride + k / kPair<S>, load_words<S>(from + r * from_stride + k, in - k));
}

// ---- The product ----

// acc[r][0 .. kPanel) = sum over steps of x[r][step] * panel[step][...]
template <class S, int R, class T = accumulator<S>>
MVIT_INLINE void multiply_panel(const T *x, int64_t stride, const T *panel, int64_t steps,
                                vec<T> (&acc)[R][kPanelVectors]) {
    constexpr int V = kPanelVectors;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            acc[r][v] = vec<T>{};
    // One pointer for four rows: as many as rows would not leave registers for them.
    const T *group[(R + 3) / 4];
#pragma GCC unroll 4
    for (int g = 0; g < (R + 3) / 4; ++g)
        group[g] = x + 4 * g * stride;
    const int64_t stride3 = 3 * stride;
    for (int64_t step = 0; step < steps; ++step, panel += kPanel<T>) {
        vec<T> w[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            w[v] = load(panel + v * lanes<T>);
            keep_vector<T>(w[v]);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const T element = group[r / 4][r % 4 == 3 ? stride3 : r % 4 * stride];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                multiply_add<S>(acc[r][v], w[v], element);
        }
#pragma GCC unroll 4
        for (int g = 0; g < (R + 3) / 4; ++g) {
            ++group[g];
            keep_pointer(group[g]);
        }
    }
}

template <class T, int R> MVIT_INLINE void add_tile(vec<T> (&acc)[R][kPanelVectors], const T *tile) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kPanelVectors; ++v)
            acc[r][v] += load(tile + r * kPanel<T> + v * lanes<T>);
}

// tile[r][0 .. kPanel) (+)= sum over steps of x[r][step] * panel[step][...]
template <class S, int R>
void product_block(const accumulator<S> *x, int64_t stride, const accumulator<S> *panel, int64_t steps, bool add,
                   accumulator<S> *tile) {
    using T = accumulator<S>;
    vec<T> acc[R][kPanelVectors];
    multiply_panel<S>(x, stride, panel, steps, acc);
    if (add)
        add_tile<T>(acc, tile);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kPanelVectors; ++v)
            store(tile + r * kPanel<T> + v * lanes<T>, acc[r][v]);
}

// A whole row of a panel.
template <class O, class T> MVIT_INLINE void store_panel(O *y, const vec<T> (&row)[kPanelVectors]) {
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<O, bf16> && kPanelVectors == 2)
        return store(reinterpret_cast<float *>(y), round_both(row[0], row[1]));
#endif
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v)
        store(y + v * lanes<T>, row[v]);
}

// What most of the results of a layer without an activation take, from the registers into y: the last chunk of
// kLinearRows rows and a whole panel, bias and residual added.
template <class S, class O, bool kResidual>
void finish_block(const accumulator<S> *x, int64_t stride, const accumulator<S> *panel, int64_t steps,
                  const accumulator<S> *tile, const accumulator<S> *bias, const O *residual, int64_t residual_stride,
                  O *y, int64_t y_stride) {
    using T = accumulator<S>;
    vec<T> acc[kLinearRows][kPanelVectors], b[kPanelVectors];
    multiply_panel<S>(x, stride, panel, steps, acc);
    if (tile)
        add_tile<T>(acc, tile);
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v)
        b[v] = load(bias + v * lanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < kLinearRows; ++r, residual += residual_stride, y += y_stride) {
#pragma GCC unroll 4
        for (int v = 0; v < kPanelVectors; ++v) {
            acc[r][v] += b[v];
            if constexpr (kResidual)
                acc[r][v] += load(residual + v * lanes<T>);
        }
        store_panel<O, T>(y, acc[r]);
    }
}

// Bias, activation and residual on a tile of `rows` x `outputs`; kWhole where these are all of a panel.
template <class O, class T, bool kGelu, bool kResidual, bool kWhole>
void finish_rows(const T *tile, int64_t rows, int64_t outputs, const T *bias, const O *residual,
                 int64_t residual_stride, O *y, int64_t y_stride) {
    constexpr int L = lanes<T>;
    vec<T> b[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v)
        b[v] = load(bias + v * L);
    for (int64_t r = 0; r < rows; ++r, tile += kPanel<T>, residual += residual_stride, y += y_stride) {
        vec<T> row[kPanelVectors];
#pragma GCC unroll 4
        for (int v = 0; v < kPanelVectors; ++v) {
            const int64_t n = outputs - v * L;
            if (!kWhole && n < 1)
                break;
            row[v] = load(tile + v * L) + b[v];
            if constexpr (kGelu)
                row[v] = gelu<sizeof(O) == 2>(row[v]);
            if constexpr (kResidual)
                row[v] += kWhole ? load(residual + v * L) : load_first(residual + v * L, n);
            if constexpr (!kWhole)
                store_first(y + v * L, row[v], n);
        }
        if constexpr (kWhole)
            store_panel<O, T>(y, row);
    }
}

template <class O, class T>
void finish_tile(const T *tile, int64_t rows, int64_t outputs, const T *bias, Activation activation, const O *residual,
                 int64_t residual_stride, O *y, int64_t y_stride) {
    const auto with = [](bool value, const auto &f) { value ? f(std::true_type{}) : f(std::false_type{}); };
    with(activation == Activation::gelu, [&](auto gelu) {
        with(residual != nullptr, [&](auto adds) {
            with(outputs >= kPanel<T>, [&](auto whole) {
                finish_rows<O, T, gelu, adds, whole>(tile, rows, outputs, bias, residual, residual_stride, y, y_stride);
            });
        });
    });
}

// ---- One call ----

template <class S> struct Plan {
    using T = accumulator<S>;
    int64_t words, panels, block_rows, row_blocks, groups, workers;
    bool copies;
    int64_t stride; // of a row as the product reads it, in words
    T *packed, *bias;
    T *rows, *tile; // per worker

    int64_t panel_words() const { return words * kPanel<T>; }
    int64_t tile_words() const { return block_rows * kPanel<T>; }
    int64_t rows_words() const { return copies ? block_rows * stride : 0; }
};

template <class S> Plan<S> make_plan(const LinearProblem &p, int64_t threads, Arena &arena) {
    using T = accumulator<S>;
    Plan<S> plan;
    plan.words = ceil_div(p.in, kPair<S>);
    plan.panels = ceil_div(p.out, kPanel<T>);
    plan.stride = p.x_stride / kPair<S>;
    const bool widens = sizeof(S) < sizeof(T) && !kPairs<S>;
    plan.copies =
        widens || p.in % kPair<S> || p.x_stride % kPair<S> || plan.stride * int64_t(sizeof(T)) % kAliasBytes == 0;
    if (plan.copies) {
        plan.stride = round_up(plan.words, lanes<T>) + lanes<T>;
        if (plan.stride * int64_t(sizeof(T)) % kAliasBytes == 0)
            plan.stride += lanes<T>;
    }
    const int64_t fit = kBlockBytes / int64_t(plan.words * sizeof(T)) / kLinearRows;
    plan.block_rows = min(clamp(fit, 4, 40), ceil_div(p.rows, kLinearRows)) * kLinearRows;
    plan.row_blocks = ceil_div(p.rows, plan.block_rows);
    const double flop = 2. * double(p.rows) * double(p.in) * double(p.out);
    const int64_t workers = clamp(int64_t(flop / kFlopPerWorker), 1, threads);
    plan.groups = workers == 1 ? 1 : clamp(ceil_div(8 * workers, plan.row_blocks), 1, plan.panels);
    plan.workers = worker_count(threads, plan.row_blocks * plan.groups, flop);
    plan.packed = arena.take<T>(plan.panels * plan.panel_words());
    plan.bias = arena.take<T>(plan.panels * kPanel<T>);
    plan.rows = arena.take<T>(plan.workers * plan.rows_words());
    plan.tile = arena.take<T>(plan.workers * plan.tile_words());
    return plan;
}

template <class S, class W> void pack_weight(const LinearProblem &p, const Plan<S> &plan, const ParallelFor &parallel) {
    using T = accumulator<S>;
    const W *const weight = static_cast<const W *>(p.weight.data);
    const int64_t workers = worker_count(parallel.threads, plan.panels, 16. * double(p.in) * double(p.out));
    for_each_task(parallel, workers, plan.panels, [&](int64_t, int64_t panel) {
        const int64_t first = panel * kPanel<T>, outputs = min(kPanel<T>, p.out - first);
        T *const to = plan.packed + panel * plan.panel_words();
        if (p.weight_stride_in == 1)
            pack_panel_from_rows<S>(weight + first * p.weight_stride_out, p.weight_stride_out, outputs, p.in, to);
        else
            pack_panel_from_columns<S>(weight + first, p.weight_stride_in, outputs, p.in, to);
    });
    for (int64_t i = 0; i < plan.panels * kPanel<T>; ++i)
        plan.bias[i] = 0;
    if (p.bias.data)
        read_parameter(plan.bias, p.bias, 0, 1, p.out);
}

template <class S, class O> void multiply(const LinearProblem &p, const Plan<S> &plan, const ParallelFor &parallel) {
    using T = accumulator<S>;
    const auto task = [&](int64_t worker, int64_t index) {
        const int64_t first_row = index / plan.groups * plan.block_rows, group = index % plan.groups;
        const int64_t rows = min(plan.block_rows, p.rows - first_row);
        const T *x = reinterpret_cast<const T *>(static_cast<const S *>(p.x) + first_row * p.x_stride);
        if (plan.copies) {
            T *const copy = plan.rows + worker * plan.rows_words();
            copy_rows(static_cast<const S *>(p.x) + first_row * p.x_stride, p.x_stride, rows, p.in, copy, plan.stride);
            x = copy;
        }
        T *const tile = plan.tile + worker * plan.tile_words();
        const int64_t last_panel = plan.panels * (group + 1) / plan.groups;
        for (int64_t panel = plan.panels * group / plan.groups; panel < last_panel; ++panel) {
            const T *const packed = plan.packed + panel * plan.panel_words();
            const int64_t column = panel * kPanel<T>;
            const O *const residual =
                p.residual ? static_cast<const O *>(p.residual) + first_row * p.residual_stride + column : nullptr;
            O *const y = static_cast<O *>(p.y) + first_row * p.out + column;
            const int64_t chunks = ceil_div(plan.words, p.out < kPanel<T> ? kNarrowChunk : kChunk);
            const bool direct = p.activation == Activation::none && p.out - column >= kPanel<T>;
            for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                const int64_t step = plan.words * chunk / chunks;
                const int64_t steps = plan.words * (chunk + 1) / chunks - step;
                const bool last = chunk == chunks - 1;
                for (int64_t r = 0; r < rows; r += kLinearRows) {
                    const int64_t count = min(kLinearRows, rows - r);
                    const T *const from = x + r * plan.stride + step, *const part = packed + step * kPanel<T>;
                    T *const sums = tile + r * kPanel<T>;
                    const O *const residual_row = residual ? residual + r * p.residual_stride : nullptr;
                    O *const y_row = y + r * p.out;
                    if (last && direct && count == kLinearRows) {
                        const auto finish = residual ? finish_block<S, O, true> : finish_block<S, O, false>;
                        finish(from, plan.stride, part, steps, chunk > 0 ? sums : nullptr, plan.bias + column,
                               residual_row, p.residual_stride, y_row, p.out);
                        continue;
                    }
                    with_constant<kLinearRows>(
                        count, [&](auto n) { product_block<S, n>(from, plan.stride, part, steps, chunk > 0, sums); });
                    if (last)
                        finish_tile<O>(sums, count, min(kPanel<T>, p.out - column), plan.bias + column, p.activation,
                                       residual_row, p.residual_stride, y_row, p.out);
                }
            }
        }
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
        if (p.weight.dtype == p.dtype)
            pack_weight<S, S>(p, plan, parallel);
        else
            pack_weight<S, T>(p, plan, parallel);
        if (p.y_dtype == p.dtype)
            multiply<S, S>(p, plan, parallel);
        else
            multiply<S, T>(p, plan, parallel);
    });
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
