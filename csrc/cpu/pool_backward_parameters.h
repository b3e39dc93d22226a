// The gradients of a pooling's parameters: sums over output tokens, one set for each task, and the sum of the tasks.
#pragma once

#include "cpu/gradients.h"
#include "cpu/pool_backward_plan.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

constexpr int kTaps = 3;       // taps along w that a block of the weight's gradient sums at once, for...
constexpr int kTapVectors = 3; // ...so many vectors of the head dim

// The outputs of an axis for which tap k lies inside the grid of n inputs.
static Taps outputs_of_tap(int64_t k, int64_t n, int64_t outputs, int64_t stride, int64_t padding) {
    const int64_t last = n - 1 + padding - k; // the last output's first tap is at most here
    return {max(0, ceil_div(max(0, padding - k), stride)), last < 0 ? 0 : min(outputs, last / stride + 1)};
}

// sum[0] += x, lane by lane; what rounding takes from the sum is added to sum[rest].
template <class T> MVIT_INLINE void add_exactly(T *sum, int64_t rest, vec<T> x) {
    const vec<T> before = load(sum), after = before + x, added = after - before;
    store(sum, after);
    store(sum + rest, load(sum + rest) + ((before - (after - added)) + (x - added)));
}

// Adds another such sum and its rest.
template <class T> MVIT_INLINE void add_sum(T *sum, int64_t rest, const T *other, int64_t other_rest) {
    add_exactly<T>(sum, rest, load(other));
    store(sum + rest, load(sum + rest) + load(other + other_rest));
}

// A rectangle of outputs and the inputs under one of their taps.
template <class S> struct Rectangle {
    const S *x;
    int64_t x_tap, x_step, x_line; // to the next tap along w, output, and line of outputs
    const accumulator<S> *dy;
    int64_t dy_step, dy_line;
    int64_t lines, count;
};

// sums[k] += sum over the rectangle of x under tap k * dy, K taps along w and V vectors of the head dim.
template <class S, int K, int V, bool kTail>
static void weight_block(const Rectangle<S> &a, int64_t c, accumulator<S> *sums, int64_t sums_stride, int64_t rest,
                         int tail) {
    using T = accumulator<S>;
    constexpr int W = lanes<T>;
    vec<T> acc[K][V];
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
            acc[k][v] = vec<T>{};
    for (int64_t line = 0; line < a.lines; ++line) {
        const S *x = a.x + line * a.x_line + c;
        const T *dy = a.dy + line * a.dy_line + c;
        for (int64_t i = 0; i < a.count; ++i, x += a.x_step, dy += a.dy_step) {
            vec<T> d[V];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v)
                d[v] = load(dy + v * W);
#pragma GCC unroll 8
            for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v)
                    acc[k][v] += (kTail ? load_partial(x + k * a.x_tap, tail) : load(x + k * a.x_tap + v * W)) * d[v];
        }
    }
#pragma GCC unroll 8
    for (int k = 0; k < K; ++k)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
            add_exactly<T>(sums + k * sums_stride + c + v * W, rest, acc[k][v]);
}

template <class S, int K>
static void weight_rectangle(const Rectangle<S> &a, accumulator<S> *sums, int64_t sums_stride, int64_t rest,
                             int64_t head_dim) {
    if (a.lines > 0 && a.count > 0)
        for_each_block<kTapVectors, lanes<accumulator<S>>>(head_dim, [&](int64_t c, auto vectors, auto tail) {
            weight_block<S, K, vectors, tail>(a, c, sums, sums_stride, rest, int(head_dim - c));
        });
}

// Adds what the lines [begin, end) of the outputs of frame ot contribute to the weight's gradient. x and dy point to
// the first grid token of their (batch, head).
template <class S>
static void weight_gradient(const PoolBackwardPlan<accumulator<S>> &p, const PoolBackwardBranch<accumulator<S>> &b,
                            const S *x, const accumulator<S> *dy, int64_t ot, int64_t begin, int64_t end,
                            accumulator<S> *sums) {
    const PoolBranch &pool = b.pool;
    const Size3 out = pool.out_grid;
    const int64_t D = p.padded_dim;
    const Taps inside_t = taps_inside(ot, pool.in.t, pool.kernel.t, pool.stride.t, pool.padding.t);
    for (int64_t kt = inside_t.first; kt < inside_t.last; ++kt)
        for (int64_t kh = 0; kh < pool.kernel.h; ++kh) {
            const Taps of_tap = outputs_of_tap(kh, pool.in.h, out.h, pool.stride.h, pool.padding.h);
            const int64_t first = max(begin, of_tap.first), lines = min(end, of_tap.last) - first;
            if (lines <= 0)
                continue;
            const int64_t it = ot * pool.stride.t - pool.padding.t + kt;
            const int64_t ih = first * pool.stride.h - pool.padding.h + kh;
            const S *const x_line = x + (it * pool.in.h + ih) * pool.in.w * pool.stride_n;
            const accumulator<S> *const dy_line = dy + (ot * out.h + first) * out.w * D;
            const auto rectangle = [&](int64_t kw, int64_t ow, int64_t last) -> Rectangle<S> {
                return {x_line + (ow * pool.stride.w - pool.padding.w + kw) * pool.stride_n,
                        pool.stride_n,
                        pool.stride.w * pool.stride_n,
                        pool.stride.h * pool.in.w * pool.stride_n,
                        dy_line + ow * D,
                        D,
                        out.w * D,
                        lines,
                        last - ow};
            };
            const auto of_kw = [&](int64_t kw) {
                return outputs_of_tap(kw, pool.in.w, out.w, pool.stride.w, pool.padding.w);
            };
            for (int64_t kw = 0, taps; kw < pool.kernel.w; kw += taps) {
                taps = pool.kernel.w - kw >= kTaps ? kTaps : 1;
                accumulator<S> *const to = sums + ((kt * pool.kernel.h + kh) * pool.kernel.w + kw) * D;
                // The outputs that have all of these taps inside, together; then what is left of each tap.
                const Taps common = {of_kw(kw).first, of_kw(kw + taps - 1).last};
                const bool together = taps == kTaps && common.first < common.last;
                if (together)
                    weight_rectangle<S, kTaps>(rectangle(kw, common.first, common.last), to, D, b.rest(D), p.head_dim);
                for (int64_t k = 0; k < taps; ++k) {
                    const Taps own = of_kw(kw + k);
                    const int64_t left_end = together ? min(common.first, own.last) : own.last;
                    weight_rectangle<S, 1>(rectangle(kw + k, own.first, left_end), to + k * D, D, b.rest(D),
                                           p.head_dim);
                    if (together)
                        weight_rectangle<S, 1>(rectangle(kw + k, max(common.last, own.first), own.last), to + k * D, D,
                                               b.rest(D), p.head_dim);
                }
            }
        }
}

// Adds one row of the sums of all tasks, in their order, and writes it: a tap of a group's weight, or a parameter of
// the norm, which all groups share.
template <class T>
static void reduce_row(const PoolBackwardPlan<T> &p, const PoolBackwardBranch<T> &b, int64_t group, int64_t row,
                       T *total) {
    const bool is_tap = row < b.weight_rows;
    const ParameterGradient &norm = row == b.weight_rows ? b.gradients.norm_weight : b.gradients.norm_bias;
    if (!is_tap && (group > 0 || !norm.data))
        return;
    const int64_t D = p.padded_dim, rest = b.rest(D);
    const int64_t first = is_tap ? group * b.tasks_per_group : 0;
    const int64_t last = is_tap ? first + b.tasks_per_group : b.groups * b.tasks_per_group;
    fill(total, 2 * D, T(0)); // and its rest
    for (int64_t task = first; task < last; ++task)
        for (int64_t c = 0; c < D; c += lanes<T>)
            add_sum<T>(total + c, D, b.sums + task * 2 * rest + row * D + c, rest);
    for (int64_t c = 0; c < D; c += lanes<T>) {
        const vec<T> left = load(total + D + c);
        store(total + c, load(total + c) + (left == left ? left : vec<T>{})); // NaN where the sum is infinite
    }
    if (is_tap)
        write_gradient(b.gradients.weight, group * p.head_dim * b.taps + row, b.taps, total, p.head_dim);
    else
        write_gradient(norm, 0, 1, total, p.head_dim);
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
