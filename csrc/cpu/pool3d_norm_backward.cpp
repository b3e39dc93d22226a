// Depthwise 3D pooling and LayerNorm, backward, up to three branches at once.
//
//   outputs    unit: a band of output lines of one (batch, head, t). The pooled rows are computed again in L1, the
//              backward of LayerNorm turns their gradient into dy, kept in the accumulation type, and while x and dy
//              are in cache the band adds to the gradients of the weight and of the norm
//   inputs     pool_backward_tokens.h. Unit: one line of input tokens. Each sums over the outputs that read it (gather:
//              no two workers write one token). Tokens of a line that are a stride apart share their taps, so this is a
//              convolution of dy again
//   parameters pool_backward_parameters.h. Each task of `outputs` has sums of its own, added in the order of the tasks:
//              a result depends on the number of threads alone
//
// Work per output token: 6*kt*kh*kw*D FLOP (pooling again, x, weight); traffic x and the gradient in, dy out and in.
// An average is a convolution with constant weights; a maximum keeps the tap that won, the first one as in PyTorch.
#include "cpu/level.h"
#include "cpu/pool_backward_parameters.h"
#include "cpu/pool_backward_tokens.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
namespace {

// The window of one output: the token under its first tap, which may lie outside, and the taps inside the grid.
struct Window {
    int64_t token;
    Taps t, h, w;
};

// row = the maximum over the window, winners = the tap it came from: the first one, or the last NaN, as in PyTorch.
template <class S>
void max_row(const PoolBranch &pool, const Window &window, const S *x, accumulator<S> *row, accumulator<S> *winners,
             int64_t head_dim) {
    using T = accumulator<S>;
    const auto tap_at = [&](int64_t t, int64_t h, int64_t w) {
        return Integer<T>((t * pool.kernel.h + h) * pool.kernel.w + w);
    };
    const Integer<T> first = tap_at(window.t.first, window.h.first, window.w.first);
    for (int64_t c = 0; c < head_dim; c += lanes<T>) {
        vec<T> best = broadcast<T>(-__builtin_huge_valf());
        ivec<T> winner = ivec<T>{} + first;
        for (int64_t t = window.t.first; t < window.t.last; ++t)
            for (int64_t h = window.h.first; h < window.h.last; ++h)
                for (int64_t w = window.w.first; w < window.w.last; ++w) {
                    const int64_t token = window.token + (t * pool.in.h + h) * pool.in.w + w;
                    const vec<T> in = load_first(x + token * pool.stride_n + c, head_dim - c);
                    const ivec<T> wins = (in > best) | (in != in);
                    best = wins ? in : best;
                    winner = wins ? ivec<T>{} + tap_at(t, h, w) : winner;
                }
        store(row + c, best);
        store(winners + c, bits_as<vec<T>>(winner));
    }
}

// dy of one row of the pooled tokens y, which becomes LayerNorm's xhat; adds to the gradients of the norm. The padding
// of y and dy is 0.
template <class S>
void backward_row(const PoolBackwardBranch<accumulator<S>> &b, accumulator<S> *y, const S *grad, accumulator<S> *dy,
                  accumulator<S> *norm_sums, int64_t rest, int64_t head_dim, int64_t padded_dim) {
    using T = accumulator<S>;
    constexpr int W = lanes<T>;
    if (!b.pool.norm) {
        for (int64_t c = 0; c < head_dim; c += W)
            store(dy + c, load_first(grad + c, head_dim - c));
        return;
    }
    const int64_t last = padded_dim - W;
    const ivec<T> inside = first_lanes<T>(int(head_dim - last)); // of the last vector
    vec<T> sum = {};
    for (int64_t c = 0; c < head_dim; c += W)
        sum += load(y + c);
    const T mean = sum_lanes<T>(sum) / T(head_dim);
    vec<T> squares = {};
    for (int64_t c = 0; c < head_dim; c += W) {
        vec<T> centred = load(y + c) - mean;
        if (c == last)
            centred = inside ? centred : vec<T>{};
        store(y + c, centred);
        squares += centred * centred;
    }
    const T scale = T(1) / sqrt(broadcast<T>(sum_lanes<T>(squares) / T(head_dim) + T(b.pool.norm_eps)))[0];
    T *const weight_sum = norm_sums, *const bias_sum = norm_sums + padded_dim;
    vec<T> sum_g = {}, sum_gx = {};
    for (int64_t c = 0; c < head_dim; c += W) {
        const vec<T> g = load_first(grad + c, head_dim - c), xhat = load(y + c) * scale;
        const vec<T> weighted = g * load(b.parameters.norm_weight + c);
        store(y + c, xhat);
        store(dy + c, weighted);
        add_exactly<T>(weight_sum + c, rest, g * xhat);
        add_exactly<T>(bias_sum + c, rest, g);
        sum_g += weighted;
        sum_gx += weighted * xhat;
    }
    const T mean_g = sum_lanes<T>(sum_g) / T(head_dim), mean_gx = sum_lanes<T>(sum_gx) / T(head_dim);
    for (int64_t c = 0; c < head_dim; c += W) {
        vec<T> d = (load(dy + c) - mean_g - load(y + c) * mean_gx) * scale;
        if (c == last)
            d = inside ? d : vec<T>{};
        store(dy + c, d);
    }
}

template <class S>
void run_unit(const PoolBackwardPlan<accumulator<S>> &p, const PoolBackwardBranch<accumulator<S>> &b, int64_t group,
              int64_t unit, accumulator<S> *rows, accumulator<S> *sums) {
    using T = accumulator<S>;
    const PoolBranch &pool = b.pool;
    const Size3 out = pool.out_grid;
    const int64_t D = p.padded_dim;
    const int64_t ot = unit % out.t, band = unit / out.t % b.bands, i = unit / out.t / b.bands;
    const int64_t bh = b.groups == 1 ? i : i * p.heads + group, batch = bh / p.heads, head = bh % p.heads;
    const int64_t begin = band * b.band_lines, end = min(begin + b.band_lines, out.h);

    const S *x = static_cast<const S *>(pool.x) + batch * pool.stride_b + head * pool.stride_h;
    const S *grad =
        static_cast<const S *>(b.gradients.grad) + batch * b.gradients.stride_b + head * b.gradients.stride_h;
    T *dy = b.dy + bh * out_tokens(p, b) * D;
    T *winners = b.winners + (b.winners ? bh * out_tokens(p, b) * D : 0);
    T *const norm_sums = rows + kConvolveRows * D; // two, and their rests
    fill(norm_sums, 4 * D, T(0));
    if (p.has_cls) {
        if (ot == 0 && band == 0) {
            for (int64_t c = 0; c < p.head_dim; c += lanes<T>)
                store(rows + c, load_first(x + c, p.head_dim - c));
            backward_row(b, rows, grad, dy, norm_sums, 2 * D, p.head_dim, D);
            if (b.gradients.x) {
                S *const to =
                    static_cast<S *>(b.gradients.x) + batch * b.gradients.x_stride_b + head * b.gradients.x_stride_h;
                for (int64_t c = 0; c < p.head_dim; c += lanes<T>)
                    store_first(to + c, load(dy + c), p.head_dim - c);
            }
        }
        x += pool.stride_n;
        grad += b.gradients.stride_n;
        dy += D;
        winners += b.winners ? D : 0;
    }

    const Taps whole = outputs_inside(pool.in.w, out.w, pool.kernel.w, pool.stride.w, pool.padding.w);
    const bool pools_again = pool.norm || pool.mode == PoolMode::max;
    Window window;
    window.t = taps_inside(ot, pool.in.t, pool.kernel.t, pool.stride.t, pool.padding.t);
    for (int64_t oh = begin; oh < end; ++oh) {
        window.h = taps_inside(oh, pool.in.h, pool.kernel.h, pool.stride.h, pool.padding.h);
        for (int64_t ow = 0, count; ow < out.w; ow += count) {
            const int64_t output = (ot * out.h + oh) * out.w + ow;
            count = pool.mode == PoolMode::max || ow < whole.first ? 1 : block_of(whole.last - ow);
            window.w = taps_inside(ow, pool.in.w, pool.kernel.w, pool.stride.w, pool.padding.w);
            window.token =
                ((ot * pool.stride.t - pool.padding.t) * pool.in.h + oh * pool.stride.h - pool.padding.h) * pool.in.w +
                ow * pool.stride.w - pool.padding.w;
            if (pool.mode == PoolMode::max) {
                max_row(pool, window, x, rows, winners + output * D, p.head_dim);
            } else if (pools_again) {
                const Taps t = window.t, h = window.h, w = window.w;
                const int64_t first = (t.first * pool.in.h + h.first) * pool.in.w + w.first;
                const int64_t tap = (t.first * pool.kernel.h + h.first) * pool.kernel.w + w.first;
                const int64_t per_tap = b.parameters.weight_per_tap;
                convolve<S>({x + (window.token + first) * pool.stride_n,
                             {pool.in.h * pool.in.w * pool.stride_n, pool.in.w * pool.stride_n, pool.stride_n},
                             pool.stride.w * pool.stride_n,
                             b.parameters.weight + head * b.parameters.weight_per_head + tap * per_tap,
                             {pool.kernel.h * pool.kernel.w * per_tap, pool.kernel.w * per_tap, per_tap},
                             {max(0, t.last - t.first), max(0, h.last - h.first), max(0, w.last - w.first)}},
                            count, rows, D, p.head_dim);
            }
            for (int64_t r = 0; r < count; ++r)
                backward_row(b, rows + r * D, grad + (output + r) * b.gradients.stride_n, dy + (output + r) * D,
                             norm_sums, 2 * D, p.head_dim, D);
        }
    }
    if (b.weight_rows)
        weight_gradient(p, b, x, dy, ot, begin, end, sums);
    for (int64_t c = 0; c < 2 * D; c += lanes<T>)
        add_sum<T>(sums + b.weight_rows * D + c, b.rest(D), norm_sums + c, 2 * D);
}

template <class S> void run(const PoolBackwardProblem &problem, void *scratch, const ParallelFor &parallel) {
    using T = accumulator<S>;
    Arena arena(scratch);
    const PoolBackwardPlan<T> p = plan_pool_backward<T>(problem, parallel.threads, arena);
    const int64_t D = p.padded_dim, rows_per_worker = (kConvolveRows + 4) * D;
    for (int i = 0; i < p.branches; ++i)
        read_parameters(p.branch[i].pool, p.heads, p.head_dim, p.padded_dim, p.branch[i].parameters);

    for_each_task(parallel, p.workers, p.tasks, [&](int64_t worker, int64_t task) {
        int i = p.branches - 1;
        while (task < p.branch[i].first_task)
            --i;
        const PoolBackwardBranch<T> &b = p.branch[i];
        task -= b.first_task;
        T *const sums = b.sums + task * 2 * b.rest(D);
        fill(sums, 2 * b.rest(D), T(0));
        const int64_t begin = task % b.tasks_per_group * b.units_per_task;
        for (int64_t unit = begin; unit < min(begin + b.units_per_task, b.units_per_group); ++unit)
            run_unit<S>(p, b, task / b.tasks_per_group, unit, p.rows + worker * rows_per_worker, sums);
    });

    for_each_task(parallel, p.workers, p.x_tasks, [&](int64_t worker, int64_t task) {
        int i = p.branches - 1;
        while (task < p.branch[i].first_x_task)
            --i;
        const PoolBackwardBranch<T> &b = p.branch[i];
        const int64_t begin = (task - b.first_x_task) * b.x_units_per_task;
        for (int64_t unit = begin; unit < min(begin + b.x_units_per_task, b.x_units); ++unit)
            run_x_unit<S>(p, b, unit, p.rows + worker * rows_per_worker);
    });

    for (int i = 0; i < p.branches; ++i) {
        const PoolBackwardBranch<T> &b = p.branch[i];
        const int64_t rows = b.weight_rows + 2, additions = b.groups * b.tasks_per_group * rows * D;
        for_each_task(parallel, worker_count(p.workers, b.groups * rows, 4. * double(additions)), b.groups * rows,
                      [&](int64_t worker, int64_t task) {
                          reduce_row(p, b, task / rows, task % rows, p.rows + worker * rows_per_worker);
                      });
    }
}

} // namespace

int64_t pool3d_norm_backward_scratch(const PoolBackwardProblem &problem, int64_t threads) {
    return with_storage(problem.forward.dtype, [&](auto storage) {
        Arena arena(nullptr);
        plan_pool_backward<accumulator<decltype(storage)>>(problem, threads, arena);
        return arena.used();
    });
}

void pool3d_norm_backward(const PoolBackwardProblem &problem, void *scratch, const ParallelFor &parallel) {
    with_storage(problem.forward.dtype, [&](auto storage) { run<decltype(storage)>(problem, scratch, parallel); });
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
