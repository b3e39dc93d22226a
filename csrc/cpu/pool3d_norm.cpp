// Depthwise 3D pooling (convolution, average or maximum) and LayerNorm over the head dim, up to three branches at once.
//
//   unit       one row h of outputs of one (batch, head), all t of it: x is read where it lies, through its strides
//   block      outputs along w x vectors of the head dim in registers. For 3 taps at stride 1 or 2 an input vector is
//   loaded
//              once for all the outputs it belongs to; other windows load it once per tap. The inner loop runs over t,
//              so the frames that two neighbouring t share are still in L1
//   epilogue   the block's rows in L1: mean, variance (two passes), scale and shift, one rounding, store
//
// Work per output token: 2*kt*kh*kw*D FLOP; traffic D elements out, and D elements of every touched input token in.
// An average is a convolution with constant weights; padding is skipped by cutting the window, never read.
#include "cpu/level.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
namespace {

// Vectors of the head dim per block: accumulators, weights and operands fit the register file.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSharedVectors = 2, kOtherVectors = 4;
#else
constexpr int kSharedVectors = 1, kOtherVectors = 2;
#endif
constexpr int kOutputs = 8; // the most outputs in one block

// One branch with its parameters in the accumulation type, rows padded to whole vectors.
template <class T> struct Branch {
    PoolBranch pool;
    T *weight;               // [heads or 1][tap][padded D]
    int64_t weight_per_head; // 0 where the heads share it
    int64_t weight_per_tap;  // 0 for an average
    T *norm_weight, *norm_bias;
    int64_t segments; // parts that the outputs along t are cut into
    int64_t units;    // (batch, head, out h, segment)
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

    // A few tasks per worker, each a run of neighbouring rows of one branch: those share input rows in L2.
    const double target = double(max(kFlopPerWorker, int64_t(total / double(8 * threads))));
    for (int i = 0; i < p.branches; ++i) {
        Branch<T> &b = p.branch[i];
        const Size3 out = b.pool.out_grid;
        const int64_t rows = p.batch * p.heads * out.h;
        b.segments = clamp(ceil_div(int64_t(flop[i] / target), rows), 1, out.t);
        b.units = rows * b.segments;
        b.units_per_task = clamp(int64_t(double(b.units) * target / flop[i]), 1, b.units);
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

// ---- Pooling of one block of outputs ----

// The window of the block's first output: the token under its first tap, which may lie outside, and the taps inside the
// grid. The block's other outputs, along w, have the same taps inside.
struct Window {
    int64_t token;
    Taps t, h, w;
};

template <class S> struct BlockArguments {
    const PoolBranch *pool;
    Window window;
    const S *x;                   // the head's first token of the grid
    const accumulator<S> *weight; // the head's
    int64_t weight_per_tap;
    accumulator<S> *rows; // the result
    int64_t padded_dim, head_dim;
};

template <class S, bool kTail> MVIT_INLINE vec<accumulator<S>> load_lanes(const S *p, int tail) {
    return kTail ? load_partial(p, tail) : load(p);
}

// R outputs, V vectors of the head dim from c on, 3 taps along w, all inside, at stride kStride. If kTail, V is 1 and
// the vector is the last one, of fewer elements than lanes.
template <class S, int kStride, int R, int V, bool kTail>
MVIT_INLINE void shared_input_block(const BlockArguments<S> &a, int64_t c) {
    using T = accumulator<S>;
    constexpr int W = lanes<T>;
    const PoolBranch &pool = *a.pool;
    const int tail = int(a.head_dim - c);
    vec<T> acc[R][V] = {};
    const S *const first = a.x + a.window.token * pool.stride_n + c;
    const int64_t line = pool.in.w * pool.stride_n, frame = pool.in.h * line;
    for (int64_t kt = a.window.t.first; kt < a.window.t.last; ++kt)
        for (int64_t kh = a.window.h.first; kh < a.window.h.last; ++kh) {
            const S *x = first + kt * frame + kh * line;
            const T *const weight = a.weight + (kt * pool.kernel.h + kh) * 3 * a.weight_per_tap + c;
            vec<T> w[3][V];
#pragma GCC unroll 3
            for (int kw = 0; kw < 3; ++kw)
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) {
                    w[kw][v] = load(weight + kw * a.weight_per_tap + v * W);
                    keep_vector<T>(w[kw][v]);
                }
#pragma GCC unroll 32
            for (int position = 0; position < (R - 1) * kStride + 3; ++position) {
                vec<T> in[V];
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) {
                    in[v] = load_lanes<S, kTail>(x + v * W, tail);
                    keep_vector<T>(in[v]);
                }
                x += pool.stride_n;
                keep_pointer(x);
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r)
                    if (position - r * kStride >= 0 && position - r * kStride < 3)
#pragma GCC unroll 4
                        for (int v = 0; v < V; ++v)
                            acc[r][v] += in[v] * w[position - r * kStride][v];
            }
        }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            store(a.rows + r * a.padded_dim + c + v * W, acc[r][v]);
}

// R outputs, V vectors, any taps; convolution or maximum.
template <class S, bool kMax, int R, int V, bool kTail>
MVIT_INLINE void other_block(const BlockArguments<S> &a, int64_t c) {
    using T = accumulator<S>;
    constexpr int W = lanes<T>;
    const PoolBranch &pool = *a.pool;
    const int tail = int(a.head_dim - c);
    const int64_t step = pool.stride.w * pool.stride_n;
    vec<T> acc[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            acc[r][v] = kMax ? broadcast<T>(-__builtin_huge_valf()) : vec<T>{};
    for (int64_t kt = a.window.t.first; kt < a.window.t.last; ++kt)
        for (int64_t kh = a.window.h.first; kh < a.window.h.last; ++kh)
            for (int64_t kw = a.window.w.first; kw < a.window.w.last; ++kw) {
                const S *x = a.x + (a.window.token + (kt * pool.in.h + kh) * pool.in.w + kw) * pool.stride_n + c;
                const int64_t tap = (kt * pool.kernel.h + kh) * pool.kernel.w + kw;
                vec<T> w[V];
                if constexpr (!kMax) {
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v)
                        w[v] = load(a.weight + tap * a.weight_per_tap + c + v * W);
                }
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r, x += step)
#pragma GCC unroll 4
                    for (int v = 0; v < V; ++v) {
                        const vec<T> in = load_lanes<S, kTail>(x + v * W, tail);
                        if constexpr (kMax)
                            acc[r][v] = ((in > acc[r][v]) | (in != in)) ? in : acc[r][v]; // NaN wins, and stays
                        else
                            acc[r][v] += in * w[v];
                    }
            }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            store(a.rows + r * a.padded_dim + c + v * W, acc[r][v]);
}

// Calls block(vectors, tail, c) over the head dim: V vectors at a time, then one, then the tail.
template <class T, int V, class F> MVIT_INLINE void over_head_dim(int64_t head_dim, const F &block) {
    constexpr int W = lanes<T>;
    int64_t c = 0;
    for (; c + V * W <= head_dim; c += V * W)
        block(std::integral_constant<int, V>{}, std::false_type{}, c);
    if constexpr (V > 2)
        if (c + V / 2 * W <= head_dim) {
            block(std::integral_constant<int, V / 2>{}, std::false_type{}, c);
            c += V / 2 * W;
        }
    if constexpr (V > 1)
        for (; c + W <= head_dim; c += W)
            block(std::integral_constant<int, 1>{}, std::false_type{}, c);
    if (c < head_dim)
        block(std::integral_constant<int, 1>{}, std::true_type{}, c);
}

template <class S, int kStride, int R> void shared_input(const BlockArguments<S> &a) {
    over_head_dim<accumulator<S>, kSharedVectors>(
        a.head_dim, [&](auto vectors, auto tail, int64_t c)
                        __attribute__((always_inline)) { shared_input_block<S, kStride, R, vectors, tail>(a, c); });
}

template <class S, bool kMax, int R> void other(const BlockArguments<S> &a) {
    over_head_dim<accumulator<S>, kOtherVectors>(
        a.head_dim, [&](auto vectors, auto tail, int64_t c)
                        __attribute__((always_inline)) { other_block<S, kMax, R, vectors, tail>(a, c); });
}

// ---- Epilogue ----

// R rows: LayerNorm if the branch has one, rounding, store. The rows' padding is 0.
template <class S, int R>
void finish(const Branch<accumulator<S>> &b, const accumulator<S> *rows, int64_t padded_dim, S *out, int64_t head_dim) {
    using T = accumulator<S>;
    constexpr int W = lanes<T>;
    constexpr int N = R < W ? R : W; // rows summed together
    const int64_t whole = head_dim / W * W;
    const int tail = int(head_dim - whole);
    if (!b.pool.norm) {
        for (int r = 0; r < R; ++r)
            for (int64_t c = 0; c < head_dim; c += W)
                store_first(out + r * head_dim + c, load(rows + r * padded_dim + c), head_dim - c);
        return;
    }
    for (int first = 0; first < R; first += N, rows += N * padded_dim, out += N * head_dim) {
        vec<T> sums[N] = {};
        for (int64_t c = 0; c < head_dim; c += W)
#pragma GCC unroll 8
            for (int r = 0; r < N; ++r)
                sums[r] += load(rows + r * padded_dim + c);
        const vec<T> mean = sum_lanes_of_rows<T, N>(sums) / T(head_dim);
        vec<T> squares[N] = {};
        for (int64_t c = 0; c < whole; c += W)
#pragma GCC unroll 8
            for (int r = 0; r < N; ++r) {
                const vec<T> centred = load(rows + r * padded_dim + c) - mean[r];
                squares[r] += centred * centred;
            }
        if (tail)
#pragma GCC unroll 8
            for (int r = 0; r < N; ++r) {
                const vec<T> centred = first_lanes<T>(tail) ? load(rows + r * padded_dim + whole) - mean[r] : vec<T>{};
                squares[r] += centred * centred;
            }
        const vec<T> variance = sum_lanes_of_rows<T, N>(squares) / T(head_dim);
        const vec<T> scale = T(1) / sqrt(variance + T(b.pool.norm_eps));
        for (int64_t c = 0; c < whole; c += W) {
            const vec<T> weight = load(b.norm_weight + c), bias = load(b.norm_bias + c);
#pragma GCC unroll 8
            for (int r = 0; r < N; ++r)
                store(out + r * head_dim + c, (load(rows + r * padded_dim + c) - mean[r]) * scale[r] * weight + bias);
        }
        if (tail) {
            const vec<T> weight = load(b.norm_weight + whole), bias = load(b.norm_bias + whole);
#pragma GCC unroll 8
            for (int r = 0; r < N; ++r)
                store_partial(out + r * head_dim + whole,
                              (load(rows + r * padded_dim + whole) - mean[r]) * scale[r] * weight + bias, tail);
        }
    }
}

// ---- Units ----

// What to run for one block: pooling and epilogue for the same number of outputs.
template <class S> struct Steps {
    int64_t outputs;
    void (*pool)(const BlockArguments<S> &);
    void (*finish)(const Branch<accumulator<S>> &, const accumulator<S> *, int64_t, S *, int64_t);
};

// For a block at a place with `left` outputs to go that have all taps along w inside (0: at the edge).
template <class S> Steps<S> steps(const PoolBranch &pool, int64_t left) {
    if (pool.mode == PoolMode::max)
        return left >= 4 ? Steps<S>{4, other<S, true, 4>, finish<S, 4>} : Steps<S>{1, other<S, true, 1>, finish<S, 1>};
    if (left > 0 && pool.kernel.w == 3 && pool.stride.w == 1)
        return left >= 8   ? Steps<S>{8, shared_input<S, 1, 8>, finish<S, 8>}
               : left >= 4 ? Steps<S>{4, shared_input<S, 1, 4>, finish<S, 4>}
               : left >= 2 ? Steps<S>{2, shared_input<S, 1, 2>, finish<S, 2>}
                           : Steps<S>{1, shared_input<S, 1, 1>, finish<S, 1>};
    if (left > 1 && pool.kernel.w == 3 && pool.stride.w == 2)
        return left >= 8   ? Steps<S>{8, shared_input<S, 2, 8>, finish<S, 8>}
               : left >= 4 ? Steps<S>{4, shared_input<S, 2, 4>, finish<S, 4>}
                           : Steps<S>{2, shared_input<S, 2, 2>, finish<S, 2>};
    return left >= 4 ? Steps<S>{4, other<S, false, 4>, finish<S, 4>} : Steps<S>{1, other<S, false, 1>, finish<S, 1>};
}

template <class S>
void run_unit(const Plan<accumulator<S>> &p, const Branch<accumulator<S>> &b, int64_t unit, accumulator<S> *rows) {
    const PoolBranch &pool = b.pool;
    const Size3 out_grid = pool.out_grid;
    const int64_t segment = unit % b.segments, oh = unit / b.segments % out_grid.h;
    const int64_t head = unit / b.segments / out_grid.h % p.heads, batch = unit / b.segments / out_grid.h / p.heads;
    const S *x = static_cast<const S *>(pool.x) + batch * pool.stride_b + head * pool.stride_h;
    S *out = static_cast<S *>(pool.out) + (batch * p.heads + head) * (p.has_cls + volume(out_grid)) * p.head_dim;
    if (p.has_cls) {
        if (segment == 0 && oh == 0) { // the cls token skips the pooling
            for (int64_t c = 0; c < p.head_dim; c += lanes<accumulator<S>>)
                store(rows + c, load_first(x + c, p.head_dim - c));
            finish<S, 1>(b, rows, p.padded_dim, out, p.head_dim);
        }
        x += pool.stride_n;
        out += p.head_dim;
    }
    BlockArguments<S> block = {&pool, {},           x,         b.weight + head * b.weight_per_head, b.weight_per_tap,
                               rows,  p.padded_dim, p.head_dim};
    const int64_t t_begin = out_grid.t * segment / b.segments, t_end = out_grid.t * (segment + 1) / b.segments;
    const Taps inside = outputs_inside(pool.in.w, out_grid.w, pool.kernel.w, pool.stride.w, pool.padding.w);
    block.window.h = taps_inside(oh, pool.in.h, pool.kernel.h, pool.stride.h, pool.padding.h);
    const int64_t h = oh * pool.stride.h - pool.padding.h;
    Steps<S> run;
    for (int64_t ow = 0; ow < out_grid.w; ow += run.outputs) {
        run = steps<S>(pool, ow < inside.first ? 0 : max(0, inside.last - ow));
        block.window.w = taps_inside(ow, pool.in.w, pool.kernel.w, pool.stride.w, pool.padding.w);
        const int64_t w = ow * pool.stride.w - pool.padding.w;
        for (int64_t ot = t_begin; ot < t_end; ++ot) {
            const int64_t t = ot * pool.stride.t - pool.padding.t;
            block.window.t = taps_inside(ot, pool.in.t, pool.kernel.t, pool.stride.t, pool.padding.t);
            block.window.token = (t * pool.in.h + h) * pool.in.w + w;
            run.pool(block);
            run.finish(b, rows, p.padded_dim, out + ((ot * out_grid.h + oh) * out_grid.w + ow) * p.head_dim,
                       p.head_dim);
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
        const int64_t begin = (task - b.first_task) * b.units_per_task, end = min(begin + b.units_per_task, b.units);
        for (int64_t unit = begin; unit < end; ++unit)
            run_unit<S>(p, b, unit, p.rows + worker * kOutputs * p.padded_dim);
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
