// Depthwise 3D pooling (convolution, average or maximum) and LayerNorm over the head dim, up to three branches at once.
//
//   unit       a block of outputs along w of one line h, and up to kMarchFrames outputs along t, of one (batch,
//              head): x is read where it lies, through its strides. Neighbouring units are neighbouring lines, which
//              share inputs
//   march      windows 3 wide at stride 1 along t: a frame at a time, pool_march.h
//   others     any window: outputs along w x vectors of the head dim in registers, an input is loaded once per tap
//   epilogue   rows of the unit, in the caches: mean, variance (two passes), scale and shift, one rounding, store
//
// Work per output token: 2*kt*kh*kw*D FLOP; traffic D elements out, and D elements of every touched input token in.
// An average is a convolution with constant weights; padding is skipped by cutting the window, never read.
#include "cpu/level.h"
#include "cpu/parallel.h"
#include "cpu/pool_march.h"
#include "cpu/pool_norm.h"
#include "cpu/simd.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
namespace {

// A block of other windows: accumulators, weights and operands fit the register file.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif
constexpr int kOutputs = 4;

template <class T> struct Branch {
    PoolBranch pool;
    PoolParameters<T> parameters;
    bool marches;
    int64_t segments, blocks, block_outputs; // parts that the outputs along t and w are cut into
    int64_t units;                           // (batch, head, segment, block, out h)
    int64_t units_per_task, first_task;
};

template <class T> struct Plan {
    int64_t batch, heads, head_dim, padded_dim;
    bool has_cls;
    int branches;
    Branch<T> branch[kMaxPoolBranches];
    T *rows; // per worker
    int64_t rows_per_worker;
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
        b.parameters = take_parameters<T>(pool, p.heads, p.padded_dim, arena);
        const double outputs = double(p.batch * p.heads) * double(volume(pool.out_grid));
        flop[i] = outputs * double(p.head_dim) * double(2 * volume(pool.kernel) + 16);
        total += flop[i];
    }

    // A few tasks per worker, each a run of neighbouring lines of one branch: those share inputs in L2.
    const double target = double(max(kFlopPerWorker, int64_t(total / double(8 * threads))));
    for (int i = 0; i < p.branches; ++i) {
        Branch<T> &b = p.branch[i];
        const Size3 out = b.pool.out_grid;
        b.marches = can_march(b.pool);
        b.block_outputs = b.marches ? kMarchOutputs : kOutputs;
        b.segments = ceil_div(out.t, kMarchFrames);
        b.blocks = ceil_div(out.w, b.block_outputs);
        b.units = p.batch * p.heads * b.segments * b.blocks * out.h;
        b.units_per_task = clamp(int64_t(double(b.units) * target / flop[i]), 1, b.units);
        b.first_task = p.tasks;
        p.tasks += ceil_div(b.units, b.units_per_task);
        const int64_t frames = b.marches ? ceil_div(out.t, b.segments) : 1;
        p.rows_per_worker = max(p.rows_per_worker, frames * b.block_outputs * p.padded_dim);
    }
    p.workers = worker_count(threads, p.tasks, total);
    p.rows = arena.take<T>(p.workers * p.rows_per_worker);
    return p;
}

// ---- Any window: one block of outputs ----

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

template <class S, bool kMax, int R> void other_rows(const BlockArguments<S> &a) {
    constexpr int W = lanes<accumulator<S>>, V = kVectors;
    int64_t c = 0;
    for (; c + V * W <= a.head_dim; c += V * W)
        other_block<S, kMax, R, V, false>(a, c);
    if constexpr (V > 2)
        for (; c + 2 * W <= a.head_dim; c += 2 * W)
            other_block<S, kMax, R, 2, false>(a, c);
    for (; c + W <= a.head_dim; c += W)
        other_block<S, kMax, R, 1, false>(a, c);
    if (c < a.head_dim)
        other_block<S, kMax, R, 1, true>(a, c);
}

template <class S> void other(const BlockArguments<S> &a, int64_t outputs) {
    const bool is_max = a.pool->mode == PoolMode::max;
    if (outputs == kOutputs)
        is_max ? other_rows<S, true, kOutputs>(a) : other_rows<S, false, kOutputs>(a);
    else
        is_max ? other_rows<S, true, 1>(a) : other_rows<S, false, 1>(a);
}

// ---- Units ----

// One (batch, head): its tokens of the grid and its weight.
template <class S> struct Head {
    const S *x;
    S *out;
    const accumulator<S> *weight;
};

// Outputs [ow, ow_end) of line oh, [t_begin, t_end) along t.
struct Outputs {
    int64_t t_begin, t_end, oh, ow, ow_end;
};

template <class S>
void march_unit(const Plan<accumulator<S>> &p, const Branch<accumulator<S>> &b, const Head<S> &head, const Outputs &o,
                accumulator<S> *rows) {
    const PoolBranch &pool = b.pool;
    march(march_of(pool, o.t_begin, o.t_end, o.oh, o.ow, o.ow_end - o.ow), head.x, head.weight,
          b.parameters.weight_per_tap, rows, p.head_dim, p.padded_dim);
    Finish<S> finish(pool, b.parameters, p.head_dim);
    for (int64_t t = o.t_begin; t < o.t_end; ++t, rows += kMarchOutputs * p.padded_dim)
        for (int64_t ow = o.ow; ow < o.ow_end; ++ow)
            finish.add(rows + (ow - o.ow) * p.padded_dim,
                       head.out + ((t * pool.out_grid.h + o.oh) * pool.out_grid.w + ow) * p.head_dim);
    finish.run();
}

template <class S>
void other_unit(const Plan<accumulator<S>> &p, const Branch<accumulator<S>> &b, const Head<S> &head, const Outputs &o,
                accumulator<S> *rows) {
    const PoolBranch &pool = b.pool;
    BlockArguments<S> block = {&pool, {},           head.x,    head.weight, b.parameters.weight_per_tap,
                               rows,  p.padded_dim, p.head_dim};
    const Taps inside = outputs_inside(pool.in.w, pool.out_grid.w, pool.kernel.w, pool.stride.w, pool.padding.w);
    block.window.h = taps_inside(o.oh, pool.in.h, pool.kernel.h, pool.stride.h, pool.padding.h);
    Finish<S> finish(pool, b.parameters, p.head_dim);
    for (int64_t ow = o.ow, count; ow < o.ow_end; ow += count) {
        count = ow >= inside.first && min(o.ow_end, inside.last) - ow >= kOutputs ? kOutputs : 1;
        block.window.w = taps_inside(ow, pool.in.w, pool.kernel.w, pool.stride.w, pool.padding.w);
        for (int64_t ot = o.t_begin; ot < o.t_end; ++ot) {
            block.window.t = taps_inside(ot, pool.in.t, pool.kernel.t, pool.stride.t, pool.padding.t);
            block.window.token =
                ((ot * pool.stride.t - pool.padding.t) * pool.in.h + o.oh * pool.stride.h - pool.padding.h) *
                    pool.in.w +
                ow * pool.stride.w - pool.padding.w;
            other(block, count);
            for (int64_t r = 0; r < count; ++r)
                finish.add(rows + r * p.padded_dim,
                           head.out + ((ot * pool.out_grid.h + o.oh) * pool.out_grid.w + ow + r) * p.head_dim);
            finish.run();
        }
    }
}

template <class S>
void run_unit(const Plan<accumulator<S>> &p, const Branch<accumulator<S>> &b, int64_t unit, accumulator<S> *rows) {
    using T = accumulator<S>;
    const PoolBranch &pool = b.pool;
    const Size3 out = pool.out_grid;
    const int64_t oh = unit % out.h, block = unit / out.h % b.blocks, segment = unit / out.h / b.blocks % b.segments;
    const int64_t bh = unit / out.h / b.blocks / b.segments, batch = bh / p.heads, head = bh % p.heads;
    Head<S> of = {static_cast<const S *>(pool.x) + batch * pool.stride_b + head * pool.stride_h,
                  static_cast<S *>(pool.out) + bh * (p.has_cls + volume(out)) * p.head_dim,
                  b.parameters.weight + head * b.parameters.weight_per_head};
    if (p.has_cls) {
        if (oh == 0 && block == 0 && segment == 0) { // the cls token skips the pooling
            for (int64_t c = 0; c < p.head_dim; c += lanes<T>)
                store(rows + c, load_first(of.x + c, p.head_dim - c));
            Finish<S> finish(pool, b.parameters, p.head_dim);
            finish.add(rows, of.out);
            finish.run();
        }
        of.x += pool.stride_n;
        of.out += p.head_dim;
    }
    const int64_t ow = block * b.block_outputs;
    const Outputs outputs = {out.t * segment / b.segments, out.t * (segment + 1) / b.segments, oh, ow,
                             min(ow + b.block_outputs, out.w)};
    if (b.marches)
        march_unit<S>(p, b, of, outputs, rows);
    else
        other_unit<S>(p, b, of, outputs, rows);
}

template <class S> void run(const PoolProblem &problem, void *scratch, const ParallelFor &parallel) {
    using T = accumulator<S>;
    Arena arena(scratch);
    const Plan<T> p = plan<T>(problem, parallel.threads, arena);
    for (int i = 0; i < p.branches; ++i)
        read_parameters(p.branch[i].pool, p.heads, p.head_dim, p.padded_dim, p.branch[i].parameters);
    for_each_task(parallel, p.workers, p.tasks, [&](int64_t worker, int64_t task) {
        int i = p.branches - 1;
        while (task < p.branch[i].first_task)
            --i;
        const Branch<T> &b = p.branch[i];
        const int64_t begin = (task - b.first_task) * b.units_per_task, end = min(begin + b.units_per_task, b.units);
        for (int64_t unit = begin; unit < end; ++unit)
            run_unit<S>(p, b, unit, p.rows + worker * p.rows_per_worker);
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
