// The product of a projection, for the kernels that have one: y = activation(x W^T + b) + residual on a block of rows.
//
//   weights            once per call into panels of kPanel outputs, [k][output]: rounded to x's dtype, 1 / rows of the
//                      work, so that no packed copy outlives a call and none can be stale
//   multiply_rows      for each panel, for each chunk of kChunk inputs (a slice that stays in cache while all rows
//   pass):
//       kLinearRows rows x kPanel outputs in registers; one row element is broadcast per step, read in place
//       sums of chunks are added up in a tile, which keeps the rounding of a long sum that of its parts
//     behind the last chunk bias and residual, from the registers, or an activation on the tile; rounded once
//   bfloat16           with AVX512-BF16: a step is a pair of inputs (vdpbf16ps); elsewhere, and for float16, rows of
//                      the block are widened to float32 first
#pragma once

#include "common/linear.h"
#include "cpu/gelu.h"
#include "cpu/parallel.h"
#include "cpu/products.h"
#include "cpu/simd.h"

#include <type_traits>

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

#if defined(__AVX512F__)
constexpr int kLinearRows = 12;
#else
constexpr int kLinearRows = kRows;
#endif
constexpr int64_t kChunk = 192;       // steps between two additions to the tile: a longer chain rounds more
constexpr int64_t kNarrowChunk = 16;  // the same where a panel is not full and its speed no matter: less rounding
constexpr int64_t kAliasBytes = 1024; // rows this far apart share a few sets of the first-level cache

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

// ---- A layer ----

// Weight and bias as the product reads them.
template <class S> struct PackedLayer {
    using T = accumulator<S>;
    int64_t words, panels; // steps of a row; groups of kPanel outputs
    T *weight, *bias;

    int64_t panel_words() const { return words * kPanel<T>; }
};

template <class S> PackedLayer<S> take_layer(const Layer &layer, Arena &arena) {
    using T = accumulator<S>;
    PackedLayer<S> packed;
    packed.words = ceil_div(layer.in, kPair<S>);
    packed.panels = ceil_div(layer.out, kPanel<T>);
    packed.weight = arena.take<T>(packed.panels * packed.panel_words());
    packed.bias = arena.take<T>(packed.panels * kPanel<T>);
    return packed;
}

// Floating-point operations that packing costs about as much time as.
static inline double packing_cost(const Layer &layer) { return 16. * double(layer.in) * double(layer.out); }

template <class S> void pack_panel_of(const Layer &layer, DType dtype, const PackedLayer<S> &packed, int64_t panel) {
    using T = accumulator<S>;
    const int64_t first = panel * kPanel<T>, outputs = min(kPanel<T>, layer.out - first);
    T *const to = packed.weight + panel * packed.panel_words();
    const auto pack = [&](auto storage) {
        const auto *const weight = static_cast<const decltype(storage) *>(layer.weight.data);
        if (layer.stride_in == 1)
            pack_panel_from_rows<S>(weight + first * layer.stride_out, layer.stride_out, outputs, layer.in, to);
        else
            pack_panel_from_columns<S>(weight + first, layer.stride_in, outputs, layer.in, to);
    };
    if (layer.weight.dtype == dtype)
        pack(S{});
    else
        pack(T{});
    for (int64_t i = 0; i < kPanel<T>; ++i)
        packed.bias[first + i] = 0;
    if (layer.bias.data)
        read_parameter(packed.bias + first, layer.bias, first, 1, outputs);
}

// Rows of x as words, far enough apart.
template <class S> int64_t copied_stride(int64_t words) {
    constexpr int64_t L = lanes<accumulator<S>>;
    const int64_t stride = round_up(words, L) + L;
    return stride * int64_t(sizeof(accumulator<S>)) % kAliasBytes ? stride : stride + L;
}

// Rows of y, panels [first, last): x in words, `tile` kPanel for each row.
template <class S, class O>
void multiply_rows(const Layer &layer, const PackedLayer<S> &packed, int64_t first, int64_t last,
                   const accumulator<S> *x, int64_t x_stride, int64_t rows, accumulator<S> *tile, Activation activation,
                   const O *residual, int64_t residual_stride, O *y, int64_t y_stride) {
    using T = accumulator<S>;
    const int64_t chunks = ceil_div(packed.words, layer.out < kPanel<T> ? kNarrowChunk : kChunk);
    for (int64_t panel = first; panel < last; ++panel) {
        const T *const weight = packed.weight + panel * packed.panel_words();
        const int64_t column = panel * kPanel<T>, outputs = min(kPanel<T>, layer.out - column);
        const bool direct = activation == Activation::none && outputs == kPanel<T>;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const int64_t step = packed.words * chunk / chunks;
            const int64_t steps = packed.words * (chunk + 1) / chunks - step;
            const bool at_end = chunk == chunks - 1;
            for (int64_t r = 0; r < rows; r += kLinearRows) {
                const int64_t count = min(kLinearRows, rows - r);
                const T *const from = x + r * x_stride + step, *const part = weight + step * kPanel<T>;
                T *const sums = tile + r * kPanel<T>;
                const O *const residual_row = residual ? residual + r * residual_stride + column : nullptr;
                O *const y_row = y + r * y_stride + column;
                if (at_end && direct && count == kLinearRows) {
                    const auto finish = residual ? finish_block<S, O, true> : finish_block<S, O, false>;
                    finish(from, x_stride, part, steps, chunk > 0 ? sums : nullptr, packed.bias + column, residual_row,
                           residual_stride, y_row, y_stride);
                    continue;
                }
                with_constant<kLinearRows>(
                    count, [&](auto n) { product_block<S, n>(from, x_stride, part, steps, chunk > 0, sums); });
                if (at_end)
                    finish_tile<O>(sums, count, outputs, packed.bias + column, activation, residual_row,
                                   residual_stride, y_row, y_stride);
            }
        }
    }
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
