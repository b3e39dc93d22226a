// How the backward of a pooling is cut into tasks, and its buffers.
#pragma once

#include "common/backward.h"
#include "cpu/parallel.h"
#include "cpu/pool_convolve.h"
#include "cpu/pool_parameters.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {

constexpr int64_t kBandOutputs = 64; // output tokens of a band, at least

// A tap's number in a lane.
template <class T> using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

template <class T> struct PoolBackwardBranch {
    PoolBranch pool;
    PoolBranchGradients gradients;
    int64_t taps;
    PoolParameters<T> parameters;
    T *dy;      // [batch * heads][out tokens][padded D]
    T *winners; // max: as dy, the tap that won, an integer of T's size

    int64_t band_lines, bands;
    int64_t groups, heads_per_group; // the heads of a batch that share a weight
    int64_t units_per_group, units_per_task, tasks_per_group, first_task;
    // [task][2][taps + 2][padded D]: the weight's, norm_weight's and norm_bias's gradients, then what rounding took
    // from these sums; no taps if not asked for.
    T *sums;
    int64_t weight_rows;
    int64_t rest(int64_t padded_dim) const { return (weight_rows + 2) * padded_dim; } // from a sum to its rest

    int64_t x_units, x_units_per_task, first_x_task;
};

template <class T> struct PoolBackwardPlan {
    int64_t batch, heads, head_dim, padded_dim;
    bool has_cls;
    int branches;
    PoolBackwardBranch<T> branch[kMaxPoolBranches];
    T *rows; // per worker: [kConvolveRows + 4][padded D]
    int64_t workers, tasks, x_tasks;
};

template <class T> static int64_t out_tokens(const PoolBackwardPlan<T> &p, const PoolBackwardBranch<T> &b) {
    return p.has_cls + volume(b.pool.out_grid);
}
template <class T> static int64_t in_tokens(const PoolBackwardPlan<T> &p, const PoolBackwardBranch<T> &b) {
    return p.has_cls + volume(b.pool.in);
}

template <class T>
static PoolBackwardPlan<T> plan_pool_backward(const PoolBackwardProblem &problem, int64_t threads, Arena &arena) {
    const PoolProblem &forward = problem.forward;
    PoolBackwardPlan<T> p = {};
    p.batch = forward.batch;
    p.heads = forward.heads;
    p.head_dim = forward.head_dim;
    p.padded_dim = round_up(p.head_dim, lanes<T>);
    p.has_cls = forward.has_cls;
    p.branches = forward.branches;

    const int64_t heads = p.batch * p.heads;
    double flop[kMaxPoolBranches] = {}, x_flop[kMaxPoolBranches] = {}, total = 0;
    for (int i = 0; i < p.branches; ++i) {
        PoolBackwardBranch<T> &b = p.branch[i];
        const PoolBranch &pool = b.pool = forward.branch[i];
        b.gradients = problem.gradients[i];
        b.taps = volume(pool.kernel);
        b.parameters = take_parameters<T>(pool, p.heads, p.padded_dim, arena);
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
        PoolBackwardBranch<T> &b = p.branch[i];
        const Size3 out = b.pool.out_grid;
        b.band_lines = clamp(ceil_div(kBandOutputs, out.w), 1, out.h);
        b.bands = ceil_div(out.h, b.band_lines);
        b.groups = b.parameters.weight_per_head ? p.heads : 1;
        b.heads_per_group = heads / b.groups;
        b.units_per_group = b.heads_per_group * b.bands * out.t;
        b.units_per_task = per_task(b.units_per_group, flop[i] / double(b.groups));
        b.tasks_per_group = ceil_div(b.units_per_group, b.units_per_task);
        b.first_task = p.tasks;
        p.tasks += b.groups * b.tasks_per_group;
        b.sums = arena.take<T>(b.groups * b.tasks_per_group * 2 * b.rest(p.padded_dim));

        b.x_units = b.gradients.x ? heads * b.pool.in.h * b.pool.in.t : 0;
        b.x_units_per_task = per_task(b.x_units, x_flop[i]);
        b.first_x_task = p.x_tasks;
        p.x_tasks += ceil_div(b.x_units, b.x_units_per_task);
    }
    p.workers = worker_count(threads, max(p.tasks, p.x_tasks), total);
    p.rows = arena.take<T>(p.workers * (kConvolveRows + 4) * p.padded_dim);
    return p;
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
