// Depthwise 3D pooling and LayerNorm, backward, up to three branches at once.
//
//   outputs    unit: a band of output lines of one (batch, head, t). The pooled rows are computed again in L1,
//   LayerNorm's
//              backward turns their gradient into dy, kept in the accumulation type, and while x and dy are in cache
//              the band adds to the gradients of the weight and of the norm
//   inputs     unit: one line of input tokens. Each sums over the outputs that read it (gather: no two workers write
//   one
//              token). Tokens of a line that are a stride apart share their taps, so this is a convolution of dy again
//   parameters each task of `outputs` has sums of its own, added here in the order of the tasks: a result depends on
//   the
//              number of threads alone
//
// Work per output token: 6*kt*kh*kw*D FLOP (pooling again, x, weight); traffic x and the gradient in, dy out and in.
// An average is a convolution with constant weights; a maximum keeps the tap that won, the first one as in PyTorch.
#include "common/backward.h"
#include "cpu/gradients.h"
#include "cpu/level.h"
#include "cpu/parallel.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
namespace {

// kOutputs x kVectors accumulators, kVectors weights and one operand fit the register file.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kOutputs = 8, kVectors = 3;
#elif defined(__AVX2__)
constexpr int kOutputs = 4, kVectors = 3;
#else
constexpr int kOutputs = 4, kVectors = 2;
#endif
constexpr int kTaps = 3;             // taps along w that a block of the weight's gradient sums at once, for...
constexpr int kTapVectors = 3;       // ...so many vectors of the head dim
constexpr int64_t kBandOutputs = 64; // output tokens of a band, at least

// A tap's number in a lane.
template <class T> using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

template <class T> struct Branch {
    PoolBranch pool;
    PoolBranchGradients gradients;
    int64_t taps;
    T *weight;               // [heads or 1][tap][padded D]
    int64_t weight_per_head; // 0 where the heads share it
    int64_t weight_per_tap;  // 0 for an average
    T *norm_weight;
    T *dy;      // [batch * heads][out tokens][padded D]
    T *winners; // max: as dy, the tap that won, an integer of T's size

    int64_t band_lines, bands;
    int64_t groups, heads_per_group; // the heads of a batch that share a weight
    int64_t units_per_group, units_per_task, tasks_per_group, first_task;
    T *sums; // [task][taps + 2][padded D]: the weight's, norm_weight's and norm_bias's gradients; no taps if not asked
             // for
    int64_t weight_rows;

    int64_t x_units, x_units_per_task, first_x_task;
};

template <class T> struct Plan {
    int64_t batch, heads, head_dim, padded_dim;
    bool has_cls;
    int branches;
    Branch<T> branch[kMaxPoolBranches];
    T *rows; // per worker: [kOutputs + 2][padded D]
    int64_t workers, tasks, x_tasks;
};

template <class T> int64_t out_tokens(const Plan<T> &p, const Branch<T> &b) {
    return p.has_cls + volume(b.pool.out_grid);
}
template <class T> int64_t in_tokens(const Plan<T> &p, const Branch<T> &b) { return p.has_cls + volume(b.pool.in); }

template <class T> Plan<T> plan(const PoolBackwardProblem &problem, int64_t threads, Arena &arena) {
    const PoolProblem &forward = problem.forward;
    Plan<T> p = {};
    p.batch = forward.batch;
    p.heads = forward.heads;
    p.head_dim = forward.head_dim;
    p.padded_dim = round_up(p.head_dim, lanes<T>);
    p.has_cls = forward.has_cls;
    p.branches = forward.branches;

    const int64_t heads = p.batch * p.heads;
    double flop[kMaxPoolBranches] = {}, x_flop[kMaxPoolBranches] = {}, total = 0;
    for (int i = 0; i < p.branches; ++i) {
        Branch<T> &b = p.branch[i];
        const PoolBranch &pool = b.pool = forward.branch[i];
        const bool shared = !(pool.mode == PoolMode::conv && pool.per_head_weight);
        b.gradients = problem.gradients[i];
        b.taps = volume(pool.kernel);
        if (pool.mode != PoolMode::max)
            b.weight =
                arena.take<T>((shared ? 1 : p.heads) * (pool.mode == PoolMode::conv ? b.taps : 1) * p.padded_dim);
        b.weight_per_tap = pool.mode == PoolMode::conv ? p.padded_dim : 0;
        b.weight_per_head = shared ? 0 : b.taps * p.padded_dim;
        if (pool.norm)
            b.norm_weight = arena.take<T>(p.padded_dim);
        const int64_t outputs = heads * out_tokens(p, b);
        b.dy = arena.take<T>(outputs * p.padded_dim);
        if (pool.mode == PoolMode::max)
            b.winners = arena.take<T>(outputs * p.padded_dim);
        b.weight_rows = b.gradients.weight.data ? b.taps : 0;

        const double values = double(outputs) * double(p.head_dim);
        flop[i] = values * double(2 * (pool.norm || pool.mode == PoolMode::max ? b.taps : 0) + 2 * b.weight_rows + 16);
        if (b.gradients.x)
            x_flop[i] = values * double(2 * b.taps) + 4. * double(heads * in_tokens(p, b)) * double(p.head_dim);
        total += flop[i] + x_flop[i];
    }

    // A few tasks per worker and pass; each a run of neighbouring units, which share input lines in L2.
    const double target = max(kFlopPerWorker, int64_t(total / double(8 * threads)));
    const auto per_task = [&](int64_t units, double work) {
        return clamp(int64_t(double(units) * target / max(1, int64_t(work))), 1, max(1, units));
    };
    for (int i = 0; i < p.branches; ++i) {
        Branch<T> &b = p.branch[i];
        const Size3 out = b.pool.out_grid;
        b.band_lines = clamp(ceil_div(kBandOutputs, out.w), 1, out.h);
        b.bands = ceil_div(out.h, b.band_lines);
        b.groups = b.weight_per_head ? p.heads : 1;
        b.heads_per_group = heads / b.groups;
        b.units_per_group = b.heads_per_group * b.bands * out.t;
        b.units_per_task = per_task(b.units_per_group, flop[i] / double(b.groups));
        b.tasks_per_group = ceil_div(b.units_per_group, b.units_per_task);
        b.first_task = p.tasks;
        p.tasks += b.groups * b.tasks_per_group;
        b.sums = arena.take<T>(b.groups * b.tasks_per_group * (b.weight_rows + 2) * p.padded_dim);

        b.x_units = b.gradients.x ? heads * b.pool.in.h * b.pool.in.t : 0;
        b.x_units_per_task = per_task(b.x_units, x_flop[i]);
        b.first_x_task = p.x_tasks;
        p.x_tasks += ceil_div(b.x_units, b.x_units_per_task);
    }
    p.workers = worker_count(threads, max(p.tasks, p.x_tasks), total);
    p.rows = arena.take<T>(p.workers * (kOutputs + 2) * p.padded_dim);
    return p;
}

template <class T> void fill(T *to, int64_t n, T value) {
    for (int64_t i = 0; i < n; ++i)
        to[i] = value;
}

template <class T> void read_parameters(const Plan<T> &p, const Branch<T> &b) {
    const PoolBranch &pool = b.pool;
    if (pool.mode == PoolMode::avg)
        fill(b.weight, p.padded_dim, T(1) / T(b.taps));
    if (pool.mode == PoolMode::conv)
        for (int64_t head = 0; head < (pool.per_head_weight ? p.heads : 1); ++head)
            for (int64_t tap = 0; tap < b.taps; ++tap) {
                T *const to = b.weight + (head * b.taps + tap) * p.padded_dim;
                read_parameter(to, pool.weight, head * p.head_dim * b.taps + tap, b.taps, p.head_dim);
                fill(to + p.head_dim, p.padded_dim - p.head_dim, T(0));
            }
    if (pool.norm) {
        fill(b.norm_weight, p.padded_dim, T(1));
        if (pool.norm_weight.data)
            read_parameter(b.norm_weight, pool.norm_weight, 0, 1, p.head_dim);
    }
}

// ---- Convolution ----

// Operands of a convolution: where the first tap's lie, the distance to the next tap's along each axis, and how many
// taps.
template <class S> struct Operands {
    const S *in;
    Size3 in_step;
    int64_t row_step; // from one row's operand to the next row's
    const accumulator<S> *weight;
    Size3 weight_step, taps;
};

// rows[r] = sum over taps of in * weight, R rows and V vectors of the head dim; `tail` < lanes elements if kTail.
template <class S, int R, int V, bool kTail>
MVIT_INLINE void convolve_block(const Operands<S> &o, int64_t c, accumulator<S> *rows, int64_t row_stride, int tail) {
    using T = accumulator<S>;
    constexpr int W = lanes<T>;
    vec<T> acc[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
            acc[r][v] = vec<T>{};
    for (int64_t t = 0; t < o.taps.t; ++t)
        for (int64_t h = 0; h < o.taps.h; ++h) {
            const S *in = o.in + t * o.in_step.t + h * o.in_step.h + c;
            const T *weight = o.weight + t * o.weight_step.t + h * o.weight_step.h + c;
            for (int64_t w = 0; w < o.taps.w; ++w, in += o.in_step.w, weight += o.weight_step.w) {
                vec<T> factor[V];
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v)
                    factor[v] = load(weight + v * W);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                    for (int v = 0; v < V; ++v)
                        acc[r][v] +=
                            (kTail ? load_partial(in + r * o.row_step, tail) : load(in + r * o.row_step + v * W)) *
                            factor[v];
            }
        }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
            store(rows + r * row_stride + c + v * W, acc[r][v]);
}

// Calls f(c, vectors as a constant, whether c is the tail) for blocks of at most N vectors that cover `head_dim`.
template <int N, int W, class F> MVIT_INLINE void for_each_block(int64_t head_dim, const F &f) {
    int64_t c = 0;
    for (; c + N * W <= head_dim; c += N * W)
        f(c, std::integral_constant<int, N>{}, std::false_type{});
    if constexpr (N > 2)
        if (c + 2 * W <= head_dim) {
            f(c, std::integral_constant<int, 2>{}, std::false_type{});
            c += 2 * W;
        }
    if (c + W <= head_dim) {
        f(c, std::integral_constant<int, 1>{}, std::false_type{});
        c += W;
    }
    if (c < head_dim)
        f(c, std::integral_constant<int, 1>{}, std::true_type{});
}

template <class S, int R>
void convolve_rows(const Operands<S> &o, accumulator<S> *rows, int64_t row_stride, int64_t head_dim) {
    for_each_block<kVectors, lanes<accumulator<S>>>(head_dim, [&](int64_t c, auto vectors, auto tail) {
        convolve_block<S, R, vectors, tail>(o, c, rows, row_stride, int(head_dim - c));
    });
}

// How many of `left` rows to take at once.
MVIT_INLINE int64_t block_of(int64_t left) { return left >= kOutputs ? kOutputs : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

template <class S>
void convolve(const Operands<S> &o, int64_t count, accumulator<S> *rows, int64_t row_stride, int64_t head_dim) {
    if (count == kOutputs)
        convolve_rows<S, kOutputs>(o, rows, row_stride, head_dim);
    else if (count == 4)
        convolve_rows<S, 4>(o, rows, row_stride, head_dim);
    else if (count == 2)
        convolve_rows<S, 2>(o, rows, row_stride, head_dim);
    else
        convolve_rows<S, 1>(o, rows, row_stride, head_dim);
}

// ---- Outputs: dy and the gradients of the parameters ----

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
void backward_row(const Branch<accumulator<S>> &b, accumulator<S> *y, const S *grad, accumulator<S> *dy,
                  accumulator<S> *norm_sums, int64_t head_dim, int64_t padded_dim) {
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
        const vec<T> weighted = g * load(b.norm_weight + c);
        store(y + c, xhat);
        store(dy + c, weighted);
        store(weight_sum + c, load(weight_sum + c) + g * xhat);
        store(bias_sum + c, load(bias_sum + c) + g);
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

// The outputs of an axis for which tap k lies inside the grid of n inputs.
Taps outputs_of_tap(int64_t k, int64_t n, int64_t outputs, int64_t stride, int64_t padding) {
    const int64_t last = n - 1 + padding - k; // the last output's first tap is at most here
    return {max(0, ceil_div(max(0, padding - k), stride)), last < 0 ? 0 : min(outputs, last / stride + 1)};
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
void weight_block(const Rectangle<S> &a, int64_t c, accumulator<S> *sums, int64_t sums_stride, int tail) {
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
        for (int v = 0; v < V; ++v) {
            T *const at = sums + k * sums_stride + c + v * W;
            store(at, load(at) + acc[k][v]);
        }
}

template <class S, int K>
void weight_rectangle(const Rectangle<S> &a, accumulator<S> *sums, int64_t sums_stride, int64_t head_dim) {
    if (a.lines > 0 && a.count > 0)
        for_each_block<kTapVectors, lanes<accumulator<S>>>(head_dim, [&](int64_t c, auto vectors, auto tail) {
            weight_block<S, K, vectors, tail>(a, c, sums, sums_stride, int(head_dim - c));
        });
}

// Adds what the lines [begin, end) of the outputs of frame ot contribute to the weight's gradient. x and dy point to
// the first grid token of their (batch, head).
template <class S>
void weight_gradient(const Plan<accumulator<S>> &p, const Branch<accumulator<S>> &b, const S *x,
                     const accumulator<S> *dy, int64_t ot, int64_t begin, int64_t end, accumulator<S> *sums) {
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
                    weight_rectangle<S, kTaps>(rectangle(kw, common.first, common.last), to, D, p.head_dim);
                for (int64_t k = 0; k < taps; ++k) {
                    const Taps own = of_kw(kw + k);
                    const int64_t left_end = together ? min(common.first, own.last) : own.last;
                    weight_rectangle<S, 1>(rectangle(kw + k, own.first, left_end), to + k * D, D, p.head_dim);
                    if (together)
                        weight_rectangle<S, 1>(rectangle(kw + k, max(common.last, own.first), own.last), to + k * D, D,
                                               p.head_dim);
                }
            }
        }
}

template <class S>
void run_unit(const Plan<accumulator<S>> &p, const Branch<accumulator<S>> &b, int64_t group, int64_t unit,
              accumulator<S> *rows, accumulator<S> *sums) {
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
    T *const norm_sums = rows + kOutputs * D;
    fill(norm_sums, 2 * D, T(0));
    if (p.has_cls) {
        if (ot == 0 && band == 0) {
            for (int64_t c = 0; c < p.head_dim; c += lanes<T>)
                store(rows + c, load_first(x + c, p.head_dim - c));
            backward_row(b, rows, grad, dy, norm_sums, p.head_dim, D);
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
                const int64_t per_tap = b.weight_per_tap;
                convolve<S>({x + (window.token + first) * pool.stride_n,
                             {pool.in.h * pool.in.w * pool.stride_n, pool.in.w * pool.stride_n, pool.stride_n},
                             pool.stride.w * pool.stride_n,
                             b.weight + head * b.weight_per_head + tap * per_tap,
                             {pool.kernel.h * pool.kernel.w * per_tap, pool.kernel.w * per_tap, per_tap},
                             {max(0, t.last - t.first), max(0, h.last - h.first), max(0, w.last - w.first)}},
                            count, rows, D, p.head_dim);
            }
            for (int64_t r = 0; r < count; ++r)
                backward_row(b, rows + r * D, grad + (output + r) * b.gradients.stride_n, dy + (output + r) * D,
                             norm_sums, p.head_dim, D);
        }
    }
    if (b.weight_rows)
        weight_gradient(p, b, x, dy, ot, begin, end, sums);
    for (int64_t c = 0; c < 2 * D; c += lanes<T>)
        store(sums + b.weight_rows * D + c, load(sums + b.weight_rows * D + c) + load(norm_sums + c));
}

// ---- Inputs ----

// The outputs that read coordinate i of an axis: output q - m by tap rest + m * stride, m in [first, last).
struct Readers {
    int64_t q, rest, first, last;
};
Readers readers_of(int64_t i, int64_t outputs, int64_t kernel, int64_t stride, int64_t padding) {
    const int64_t q = (i + padding) / stride, rest = (i + padding) % stride;
    const int64_t taps = rest < kernel ? ceil_div(kernel - rest, stride) : 0;
    const int64_t first = max(0, q - outputs + 1);
    return {q, rest, first, max(first, min(taps, q + 1))};
}

// row = sum of dy over the outputs that this token won.
template <class T>
void gather_maximum(const Plan<T> &p, const Branch<T> &b, const T *dy, const T *winners, Readers t, Readers h,
                    Readers w, T *row) {
    const Size3 out = b.pool.out_grid, kernel = b.pool.kernel, stride = b.pool.stride;
    for (int64_t c = 0; c < p.padded_dim; c += lanes<T>) {
        vec<T> sum = {};
        for (int64_t mt = t.first; mt < t.last; ++mt)
            for (int64_t mh = h.first; mh < h.last; ++mh)
                for (int64_t mw = w.first; mw < w.last; ++mw) {
                    const int64_t tap = ((t.rest + mt * stride.t) * kernel.h + h.rest + mh * stride.h) * kernel.w +
                                        w.rest + mw * stride.w;
                    const int64_t at = (((t.q - mt) * out.h + h.q - mh) * out.w + w.q - mw) * p.padded_dim + c;
                    const ivec<T> won = bits_as<ivec<T>>(load(winners + at)) == ivec<T>{} + Integer<T>(tap);
                    sum += won ? load(dy + at) : vec<T>{};
                }
        store(row + c, sum);
    }
}

template <class S>
void run_x_unit(const Plan<accumulator<S>> &p, const Branch<accumulator<S>> &b, int64_t unit, accumulator<S> *rows) {
    using T = accumulator<S>;
    const PoolBranch &pool = b.pool;
    const Size3 out = pool.out_grid, stride = pool.stride, kernel = pool.kernel;
    const int64_t D = p.padded_dim, per_tap = b.weight_per_tap;
    const int64_t it = unit % pool.in.t, ih = unit / pool.in.t % pool.in.h, bh = unit / pool.in.t / pool.in.h;
    const T *const dy = b.dy + (bh * out_tokens(p, b) + p.has_cls) * D;
    S *const to = static_cast<S *>(b.gradients.x) + bh / p.heads * b.gradients.x_stride_b +
                  bh % p.heads * b.gradients.x_stride_h +
                  (p.has_cls + (it * pool.in.h + ih) * pool.in.w) * b.gradients.x_stride_n;
    const Readers t = readers_of(it, out.t, kernel.t, stride.t, pool.padding.t);
    const Readers h = readers_of(ih, out.h, kernel.h, stride.h, pool.padding.h);
    // Tokens a stride apart have the same rest, and away from the borders the same taps.
    for (int64_t start = 0; start < min(stride.w, pool.in.w); ++start)
        for (int64_t i = start, count; i < pool.in.w; i += count * stride.w) {
            const Readers w = readers_of(i, out.w, kernel.w, stride.w, pool.padding.w);
            if (pool.mode == PoolMode::max) {
                count = 1;
                gather_maximum(p, b, dy, b.winners + (dy - b.dy), t, h, w, rows);
            } else {
                const int64_t taps = w.rest < kernel.w ? ceil_div(kernel.w - w.rest, stride.w) : 0;
                const bool whole = w.last - w.first == taps;
                const int64_t left = min(out.w - w.q, ceil_div(pool.in.w - i, stride.w));
                count = whole ? block_of(left) : 1;
                const int64_t output = ((t.q - t.first) * out.h + h.q - h.first) * out.w + w.q - w.first;
                const int64_t tap =
                    ((t.rest + t.first * stride.t) * kernel.h + h.rest + h.first * stride.h) * kernel.w + w.rest +
                    w.first * stride.w;
                convolve<T>(
                    {dy + output * D,
                     {-out.h * out.w * D, -out.w * D, -D},
                     D,
                     b.weight + bh % p.heads * b.weight_per_head + tap * per_tap,
                     {stride.t * kernel.h * kernel.w * per_tap, stride.h * kernel.w * per_tap, stride.w * per_tap},
                     {t.last - t.first, h.last - h.first, w.last - w.first}},
                    count, rows, D, D);
            }
            for (int64_t r = 0; r < count; ++r)
                for (int64_t c = 0; c < p.head_dim; c += lanes<T>)
                    store_first(to + (i + r * stride.w) * b.gradients.x_stride_n + c, load(rows + r * D + c),
                                p.head_dim - c);
        }
}

// ---- Parameters ----

// Adds one row of the sums of all tasks, in their order, and writes it: a tap of a group's weight, or a parameter of
// the norm, which all groups share.
template <class T> void reduce_row(const Plan<T> &p, const Branch<T> &b, int64_t group, int64_t row, T *total) {
    const bool is_tap = row < b.weight_rows;
    const ParameterGradient &norm = row == b.weight_rows ? b.gradients.norm_weight : b.gradients.norm_bias;
    if (!is_tap && (group > 0 || !norm.data))
        return;
    const int64_t D = p.padded_dim, size = (b.weight_rows + 2) * D;
    const int64_t first = is_tap ? group * b.tasks_per_group : 0;
    const int64_t last = is_tap ? first + b.tasks_per_group : b.groups * b.tasks_per_group;
    fill(total, D, T(0));
    for (int64_t task = first; task < last; ++task)
        for (int64_t c = 0; c < D; c += lanes<T>)
            store(total + c, load(total + c) + load(b.sums + task * size + row * D + c));
    if (is_tap)
        write_gradient(b.gradients.weight, group * p.head_dim * b.taps + row, b.taps, total, p.head_dim);
    else
        write_gradient(norm, 0, 1, total, p.head_dim);
}

template <class S> void run(const PoolBackwardProblem &problem, void *scratch, const ParallelFor &parallel) {
    using T = accumulator<S>;
    Arena arena(scratch);
    const Plan<T> p = plan<T>(problem, parallel.threads, arena);
    const int64_t D = p.padded_dim, rows_per_worker = (kOutputs + 2) * D;
    for (int i = 0; i < p.branches; ++i)
        read_parameters(p, p.branch[i]);

    for_each_task(parallel, p.workers, p.tasks, [&](int64_t worker, int64_t task) {
        int i = p.branches - 1;
        while (task < p.branch[i].first_task)
            --i;
        const Branch<T> &b = p.branch[i];
        task -= b.first_task;
        T *const sums = b.sums + task * (b.weight_rows + 2) * D;
        fill(sums, (b.weight_rows + 2) * D, T(0));
        const int64_t begin = task % b.tasks_per_group * b.units_per_task;
        for (int64_t unit = begin; unit < min(begin + b.units_per_task, b.units_per_group); ++unit)
            run_unit<S>(p, b, task / b.tasks_per_group, unit, p.rows + worker * rows_per_worker, sums);
    });

    for_each_task(parallel, p.workers, p.x_tasks, [&](int64_t worker, int64_t task) {
        int i = p.branches - 1;
        while (task < p.branch[i].first_x_task)
            --i;
        const Branch<T> &b = p.branch[i];
        const int64_t begin = (task - b.first_x_task) * b.x_units_per_task;
        for (int64_t unit = begin; unit < min(begin + b.x_units_per_task, b.x_units); ++unit)
            run_x_unit<S>(p, b, unit, p.rows + worker * rows_per_worker);
    });

    for (int i = 0; i < p.branches; ++i) {
        const Branch<T> &b = p.branch[i];
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
        plan<accumulator<decltype(storage)>>(problem, threads, arena);
        return arena.used();
    });
}

void pool3d_norm_backward(const PoolBackwardProblem &problem, void *scratch, const ParallelFor &parallel) {
    with_storage(problem.forward.dtype, [&](auto storage) { run<decltype(storage)>(problem, scratch, parallel); });
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
