// Depthwise 3D pooling (convolution, average or maximum) and LayerNorm over the head dim, up to three branches at once.
//
//   unit       one row h of outputs of one (batch, head), all t of it: x is read where it lies, through its strides
//   block      R outputs along w by V vectors of the head dim in registers; a tap's weight is loaded once per block, x is
//              the memory operand of the FMA. Inner loop over t, so that the kt - 1 frames shared with the next t are in L1
//   epilogue   R rows in L1: mean, variance (two passes), scale and shift, one rounding, store
//
// Work per output token: 2*kt*kh*kw*D FLOP; traffic D elements out, and D elements of every touched input token in.
// An average is a convolution with constant weights; padding is skipped by cutting the window, never read.
#include "cpu/level.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
namespace {

// R * V accumulators, V weights and one operand fit the register file.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kOutputs = 8, kVectors = 3;
#elif defined(__AVX2__)
constexpr int kOutputs = 4, kVectors = 3;
#else
constexpr int kOutputs = 4, kVectors = 2;
#endif

// One branch with its parameters in the accumulation type, rows padded to whole vectors.
template <class T> struct Branch {
    PoolBranch pool;
    T *weight;               // [heads or 1][tap][padded D]
    int64_t weight_per_head; // 0 where the heads share it
    int64_t weight_per_tap;  // 0 for an average
    T *norm_weight, *norm_bias;
    int64_t segments;        // parts that the outputs along t are cut into
    int64_t units;           // (batch, head, out h, segment)
    int64_t units_per_task, first_task;
};

template <class T> struct Plan {
    int64_t batch, heads, head_dim, padded_dim;
    bool has_cls;
    int branches;
    Branch<T> branch[kMaxPoolBranches];
    T *rows; // [worker][kOutputs][padded D]
    int64_t workers, tasks;
};

template <class T> Plan<T> plan(const PoolProblem &problem, int64_t threads, Arena &arena) {
    Plan<T> p = {};
    p.batch = problem.batch;
    p.heads = problem.heads;
    p.head_dim = problem.head_dim;
    p.padded_dim = round_up(p.head_dim, lanes<T>);
    p.has_cls = problem.has_cls;
    p.branches = problem.branches;

    double flop[kMaxPoolBranches] = {}, total = 0;
    for (int i = 0; i < p.branches; ++i) {
        Branch<T> &b = p.branch[i];
        const PoolBranch &pool = b.pool = problem.branch[i];
        const bool shared = !(pool.mode == PoolMode::conv && pool.per_head_weight);
        const int64_t taps = pool.mode == PoolMode::conv ? volume(pool.kernel) : 1;
        if (pool.mode != PoolMode::max)
            b.weight = arena.take<T>((shared ? 1 : p.heads) * taps * p.padded_dim);
        b.weight_per_tap = pool.mode == PoolMode::conv ? p.padded_dim : 0;
        b.weight_per_head = shared ? 0 : taps * p.padded_dim;
        if (pool.norm) {
            b.norm_weight = arena.take<T>(p.padded_dim);
            b.norm_bias = arena.take<T>(p.padded_dim);
        }
        const double outputs = double(p.batch * p.heads) * double(volume(pool.out_grid));
        flop[i] = outputs * double(p.head_dim) * double(2 * volume(pool.kernel) + 16);
        total += flop[i];
    }

    // A few tasks per worker; each a run of neighbouring rows of one branch, which share input rows in L2.
    const double target = max(kFlopPerWorker, int64_t(total / double(8 * threads)));
    for (int i = 0; i < p.branches; ++i) {
        Branch<T> &b = p.branch[i];
        const Size3 out = b.pool.out_grid;
        const int64_t rows = p.batch * p.heads * out.h;
        b.segments = clamp(ceil_div(int64_t(flop[i] / target), max(rows, 1)), 1, out.t);
        b.units = rows * b.segments;
        b.units_per_task = clamp(int64_t(double(b.units) * target / max(1, int64_t(flop[i]))), 1, max(1, b.units));
        b.first_task = p.tasks;
        p.tasks += ceil_div(b.units, b.units_per_task);
    }
    p.workers = worker_count(threads, p.tasks, total);
    p.rows = arena.take<T>(p.workers * kOutputs * p.padded_dim);
    return p;
}

template <class T> void fill(T *to, int64_t n, T value) {
    for (int64_t i = 0; i < n; ++i)
        to[i] = value;
}

template <class T> void read_parameters(const Plan<T> &p, const Branch<T> &b) {
    const PoolBranch &pool = b.pool;
    const int64_t taps = volume(pool.kernel);
    if (pool.mode == PoolMode::avg)
        fill(b.weight, p.padded_dim, T(1) / T(taps));
    if (pool.mode == PoolMode::conv)
        for (int64_t head = 0; head < (pool.per_head_weight ? p.heads : 1); ++head)
            for (int64_t tap = 0; tap < taps; ++tap) {
                T *const to = b.weight + (head * taps + tap) * p.padded_dim;
                read_parameter(to, pool.weight, head * p.head_dim * taps + tap, taps, p.head_dim);
                fill(to + p.head_dim, p.padded_dim - p.head_dim, T(0));
            }
    if (pool.norm) {
        fill(b.norm_weight, p.padded_dim, T(1));
        fill(b.norm_bias, p.padded_dim, T(0));
        if (pool.norm_weight.data)
            read_parameter(b.norm_weight, pool.norm_weight, 0, 1, p.head_dim);
        if (pool.norm_bias.data)
            read_parameter(b.norm_bias, pool.norm_bias, 0, 1, p.head_dim);
    }
}

// The window of one output: the token under its first tap, which may lie outside, and the taps inside the grid.
struct Window {
    int64_t token;
    Taps t, h, w;
};

// R neighbouring outputs with the same taps inside, V vectors of the head dim; `tail` < lanes elements if kTail.
template <class S, bool kMax, int R, int V, bool kTail>
MVIT_INLINE void pool_block(const PoolBranch &pool, const Window &window, const S *x, const accumulator<S> *weight,
                            int64_t weight_per_tap, accumulator<S> *rows, int64_t row_stride, int tail) {
    using T = accumulator<S>;
    constexpr int W = lanes<T>;
    vec<T> acc[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
            acc[r][v] = kMax ? broadcast<T>(-__builtin_huge_valf()) : vec<T>{};

    const int64_t step = pool.stride.w * pool.stride_n;
    for (int64_t kt = window.t.first; kt < window.t.last; ++kt)
        for (int64_t kh = window.h.first; kh < window.h.last; ++kh) {
            const int64_t token = window.token + (kt * pool.in.h + kh) * pool.in.w;
            const int64_t tap = (kt * pool.kernel.h + kh) * pool.kernel.w;
            for (int64_t kw = window.w.first; kw < window.w.last; ++kw) {
                const S *const from = x + (token + kw) * pool.stride_n;
                vec<T> w[V];
                if constexpr (!kMax) {
#pragma GCC unroll 8
                    for (int v = 0; v < V; ++v)
                        w[v] = load(weight + (tap + kw) * weight_per_tap + v * W);
                }
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                    for (int v = 0; v < V; ++v) {
                        const vec<T> in = kTail ? load_partial(from + r * step, tail) : load(from + r * step + v * W);
                        if constexpr (kMax)
                            acc[r][v] = (in > acc[r][v]) | (in != in) ? in : acc[r][v];
                        else
                            acc[r][v] += in * w[v];
                    }
            }
        }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
            store(rows + r * row_stride + v * W, acc[r][v]);
}

// The same for the whole head dim.
template <class S, bool kMax, int R>
void pool_rows(const PoolBranch &pool, const Window &window, const S *x, const accumulator<S> *weight,
               int64_t weight_per_tap, accumulator<S> *rows, int64_t row_stride, int64_t head_dim) {
    constexpr int64_t W = lanes<accumulator<S>>;
    int64_t c = 0;
    for (; c + kVectors * W <= head_dim; c += kVectors * W)
        pool_block<S, kMax, R, kVectors, false>(pool, window, x + c, weight + c, weight_per_tap, rows + c, row_stride, 0);
    if (kVectors > 2 && c + 2 * W <= head_dim) {
        pool_block<S, kMax, R, 2, false>(pool, window, x + c, weight + c, weight_per_tap, rows + c, row_stride, 0);
        c += 2 * W;
    }
    if (c + W <= head_dim) {
        pool_block<S, kMax, R, 1, false>(pool, window, x + c, weight + c, weight_per_tap, rows + c, row_stride, 0);
        c += W;
    }
    if (c < head_dim)
        pool_block<S, kMax, R, 1, true>(pool, window, x + c, weight + c, weight_per_tap, rows + c, row_stride,
                                        int(head_dim - c));
}

// One row: LayerNorm if the branch has one, rounding, store. The padding of `row` is 0.
template <class S>
MVIT_INLINE void finish_row(const Branch<accumulator<S>> &b, const accumulator<S> *row, S *out, int64_t head_dim) {
    using T = accumulator<S>;
    constexpr int W = lanes<T>;
    const int64_t whole = head_dim / W * W;
    const int tail = int(head_dim - whole);
    if (!b.pool.norm) {
        for (int64_t c = 0; c < whole; c += W)
            store(out + c, load(row + c));
        if (tail)
            store_partial(out + whole, load(row + whole), tail);
        return;
    }
    vec<T> sum = {};
    for (int64_t c = 0; c < head_dim; c += W)
        sum += load(row + c);
    const T mean = sum_lanes<T>(sum) / T(head_dim);
    vec<T> squares = {};
    for (int64_t c = 0; c < whole; c += W) {
        const vec<T> centred = load(row + c) - mean;
        squares += centred * centred;
    }
    if (tail) {
        const vec<T> centred = first_lanes<T>(tail) ? load(row + whole) - mean : vec<T>{};
        squares += centred * centred;
    }
    const T scale = T(1) / sqrt(sum_lanes<T>(squares) / T(head_dim) + T(b.pool.norm_eps));
    for (int64_t c = 0; c < whole; c += W)
        store(out + c, (load(row + c) - mean) * scale * load(b.norm_weight + c) + load(b.norm_bias + c));
    if (tail)
        store_partial(out + whole,
                      (load(row + whole) - mean) * scale * load(b.norm_weight + whole) + load(b.norm_bias + whole), tail);
}

template <class S>
void cls_row(const Branch<accumulator<S>> &b, const S *x, S *out, accumulator<S> *row, int64_t head_dim) {
    constexpr int W = lanes<accumulator<S>>;
    for (int64_t c = 0; c < head_dim; c += W)
        store(row + c, load_first(x + c, head_dim - c));
    finish_row(b, row, out, head_dim);
}

template <class S, bool kMax>
void run_unit(const Plan<accumulator<S>> &p, const Branch<accumulator<S>> &b, int64_t unit, accumulator<S> *rows) {
    using T = accumulator<S>;
    const PoolBranch &pool = b.pool;
    const Size3 out_grid = pool.out_grid;
    const int64_t segment = unit % b.segments, oh = unit / b.segments % out_grid.h;
    const int64_t head = unit / b.segments / out_grid.h % p.heads, batch = unit / b.segments / out_grid.h / p.heads;
    const S *x = static_cast<const S *>(pool.x) + batch * pool.stride_b + head * pool.stride_h;
    S *out = static_cast<S *>(pool.out) +
             (batch * p.heads + head) * (p.has_cls + volume(out_grid)) * p.head_dim;
    if (p.has_cls) {
        if (segment == 0 && oh == 0)
            cls_row(b, x, out, rows, p.head_dim);
        x += pool.stride_n;
        out += p.head_dim;
    }
    const T *const weight = b.weight + head * b.weight_per_head;
    const int64_t t_begin = out_grid.t * segment / b.segments, t_end = out_grid.t * (segment + 1) / b.segments;
    const Taps whole = outputs_inside(pool.in.w, out_grid.w, pool.kernel.w, pool.stride.w, pool.padding.w);

    Window window;
    window.h = taps_inside(oh, pool.in.h, pool.kernel.h, pool.stride.h, pool.padding.h);
    for (int64_t ow = 0, count; ow < out_grid.w; ow += count) {
        const int64_t left = ow < whole.first ? 1 : whole.last - ow; // outputs from here on with the same taps along w
        count = left >= kOutputs ? kOutputs : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        window.w = taps_inside(ow, pool.in.w, pool.kernel.w, pool.stride.w, pool.padding.w);
        for (int64_t ot = t_begin; ot < t_end; ++ot) {
            window.t = taps_inside(ot, pool.in.t, pool.kernel.t, pool.stride.t, pool.padding.t);
            window.token = ((ot * pool.stride.t - pool.padding.t) * pool.in.h + oh * pool.stride.h - pool.padding.h) *
                               pool.in.w +
                           ow * pool.stride.w - pool.padding.w;
            const auto call = [&](auto block) {
                block(pool, window, x, weight, b.weight_per_tap, rows, p.padded_dim, p.head_dim);
            };
            if (count == kOutputs)
                call(pool_rows<S, kMax, kOutputs>);
            else if (count == 4)
                call(pool_rows<S, kMax, 4>);
            else if (count == 2)
                call(pool_rows<S, kMax, 2>);
            else
                call(pool_rows<S, kMax, 1>);
            S *const to = out + ((ot * out_grid.h + oh) * out_grid.w + ow) * p.head_dim;
            for (int64_t r = 0; r < count; ++r)
                finish_row(b, rows + r * p.padded_dim, to + r * p.head_dim, p.head_dim);
        }
    }
}

template <class S> void run(const PoolProblem &problem, void *scratch, const ParallelFor &parallel) {
    using T = accumulator<S>;
    Arena arena(scratch);
    const Plan<T> p = plan<T>(problem, parallel.threads, arena);
    for (int i = 0; i < p.branches; ++i)
        read_parameters(p, p.branch[i]);
    for_each_task(parallel, p.workers, p.tasks, [&](int64_t worker, int64_t task) {
        int i = p.branches - 1;
        while (task < p.branch[i].first_task)
            --i;
        const Branch<T> &b = p.branch[i];
        T *const rows = p.rows + worker * kOutputs * p.padded_dim;
        const int64_t begin = (task - b.first_task) * b.units_per_task, end = min(begin + b.units_per_task, b.units);
        for (int64_t unit = begin; unit < end; ++unit)
            if (b.pool.mode == PoolMode::max)
                run_unit<S, true>(p, b, unit, rows);
            else
                run_unit<S, false>(p, b, unit, rows);
    });
}

} // namespace

int64_t pool3d_norm_scratch(const PoolProblem &problem, int64_t threads) {
    return with_storage(problem.dtype, [&](auto storage) {
        Arena arena(nullptr);
        plan<accumulator<decltype(storage)>>(problem, threads, arena);
        return arena.used();
    });
}

void pool3d_norm(const PoolProblem &problem, void *scratch, const ParallelFor &parallel) {
    with_storage(problem.dtype, [&](auto storage) { run<decltype(storage)>(problem, scratch, parallel); });
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
