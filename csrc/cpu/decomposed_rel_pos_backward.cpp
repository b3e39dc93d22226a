// Decomposed relative position, backward: the gradients of q and of the three tables from that of the rows.
//
//   dq        unit: kLines lines of queries along w of one (batch, head, t). Queries that share an index on an axis
//   share
//             its table rows, [index][key][D]: they lie along w for the T and H tables, along h for the W table
//   tables    task: one index of one axis. It sums over all queries with that index and nothing else does, so no
//   partial
//             sums exist and the result does not depend on the number of threads. q is read once per axis
//
// Work per query: 4*D*(Kt+Kh+Kw) FLOP; traffic D and Kt+Kh+Kw elements in, four times, and D out.
#include "common/backward.h"
#include "cpu/gradients.h"
#include "cpu/level.h"
#include "cpu/pack.h"
#include "cpu/parallel.h"
#include "cpu/products.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
namespace {

constexpr int64_t kLines = 8;
constexpr int64_t kRun = 32; // queries packed at a time for a table

template <class T> struct Axis {
    Parameter table;
    ParameterGradient gradient;
    int64_t queries, keys;
    int64_t entry; // of a row, where this axis begins
    T *rows;       // [queries][keys][padded D]
};

template <class T> struct Plan {
    RelPosBackwardProblem g;
    int64_t padded_dim, tokens;
    Axis<T> axis[3];
    int64_t groups, q_units; // of kLines lines; all of them
    int64_t table_tasks;
    int64_t workers;
    T *buffers; // per worker: dq of a unit, or packed queries and the sums of a table index
    int64_t buffer_size;
};

template <class T> Plan<T> plan(const RelPosBackwardProblem &g, int64_t threads, Arena &arena) {
    const RelPosProblem &a = g.forward;
    Plan<T> p = {};
    p.g = g;
    p.padded_dim = round_up(a.head_dim, lanes<T>);
    p.tokens = a.has_cls + volume(a.grid_q);
    const Parameter tables[3] = {a.table_t, a.table_h, a.table_w};
    const ParameterGradient gradients[3] = {g.table_t, g.table_h, g.table_w};
    const int64_t queries[3] = {a.grid_q.t, a.grid_q.h, a.grid_q.w}, keys[3] = {a.grid_k.t, a.grid_k.h, a.grid_k.w};
    int64_t entry = 0, most_keys = 0, entries = 0;
    for (int i = 0; i < 3; ++i) {
        p.axis[i] = {tables[i], gradients[i], queries[i], keys[i], entry, nullptr};
        entry += keys[i];
        if (g.q && tables[i].data) {
            p.axis[i].rows = arena.take<T>(queries[i] * keys[i] * p.padded_dim);
            entries += keys[i];
        }
        if (gradients[i].data) {
            p.table_tasks += queries[i];
            most_keys = max(most_keys, keys[i]);
            entries += keys[i];
        }
    }
    p.groups = ceil_div(a.grid_q.h, kLines);
    p.q_units = g.q ? a.batch * a.heads * a.grid_q.t * p.groups : 0;
    p.workers = worker_count(threads, p.q_units + p.table_tasks,
                             2. * double(a.batch * a.heads * p.tokens) * double(a.head_dim) * double(entries));
    p.buffer_size = max(g.q ? kLines * a.grid_q.w * p.padded_dim : 0, (kRun + most_keys) * p.padded_dim);
    p.buffers = arena.take<T>(p.workers * p.buffer_size);
    return p;
}

template <class T> const T *grad_row(const Plan<T> &p, int64_t bh, int64_t token) {
    return static_cast<const T *>(p.g.grad) + bh / p.g.forward.heads * p.g.stride_b +
           bh % p.g.forward.heads * p.g.stride_h + token * p.g.stride_n;
}

template <class T> void read_table(const Plan<T> &p, const Axis<T> &axis, int64_t index) {
    const int64_t D = p.g.forward.head_dim;
    for (int64_t key = index * axis.keys; key < (index + 1) * axis.keys; ++key) {
        T *const to = axis.rows + key * p.padded_dim;
        read_parameter(to, axis.table, key * D, 1, D);
        for (int64_t c = D; c < p.padded_dim; ++c)
            to[c] = 0;
    }
}

template <class S> void run_q_unit(const Plan<accumulator<S>> &p, int64_t unit, accumulator<S> *sums) {
    using T = accumulator<S>;
    constexpr int W = lanes<T>;
    const RelPosProblem &a = p.g.forward;
    const Size3 grid = a.grid_q;
    const int64_t D = p.padded_dim, stride = p.g.stride_n;
    const int64_t group = unit % p.groups, t = unit / p.groups % grid.t, bh = unit / p.groups / grid.t;
    const int64_t h = group * kLines, lines = min(kLines, grid.h - h), rows = lines * grid.w;
    const int64_t first = a.has_cls + (t * grid.h + h) * grid.w;
    const T *const grad = grad_row(p, bh, first);
    S *const out = static_cast<S *>(p.g.q) + bh * p.tokens * a.head_dim;
    if (a.has_cls && t == 0 && group == 0)
        for (int64_t c = 0; c < a.head_dim; c += W)
            store_first(out + c, vec<T>{}, a.head_dim - c);

    __builtin_memset(sums, 0, size_t(rows * D) * sizeof(T));
    const auto add = [&](const Axis<T> &axis, int64_t index, int64_t row, int64_t step, int64_t count) {
        rows_product<T>(grad + row * stride + axis.entry, step * stride, count, axis.rows + index * axis.keys * D, D,
                        axis.keys, sums + row * D, step * D, D);
    };
    if (p.axis[0].rows)
        add(p.axis[0], t, 0, 1, rows);
    if (p.axis[1].rows)
        for (int64_t i = 0; i < lines; ++i)
            add(p.axis[1], h + i, i * grid.w, 1, grid.w);
    if (p.axis[2].rows)
        for (int64_t w = 0; w < grid.w; ++w)
            add(p.axis[2], w, w, grid.w, lines);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < a.head_dim; c += W)
            store_first(out + (first + r) * a.head_dim + c, load(sums + r * D + c), a.head_dim - c);
}

// The gradient of one table index: the queries with that index are, per (batch, head), `runs` runs of `count` tokens.
template <class S> void run_table(const Plan<accumulator<S>> &p, int i, int64_t index, accumulator<S> *buffer) {
    using T = accumulator<S>;
    const RelPosProblem &a = p.g.forward;
    const Axis<T> &axis = p.axis[i];
    const Size3 grid = a.grid_q;
    const int64_t D = p.padded_dim;
    const int64_t area = grid.h * grid.w;
    const int64_t runs = i == 0 ? 1 : grid.t, count = i == 0 ? area : i == 1 ? grid.w : grid.h;
    const int64_t step = i == 2 ? grid.w : 1, begin = i == 0 ? index * area : i == 1 ? index * grid.w : index;
    T *const q_rows = buffer, *const sums = buffer + kRun * D;
    __builtin_memset(sums, 0, size_t(axis.keys * D) * sizeof(T));
    for (int64_t bh = 0; bh < a.batch * a.heads; ++bh) {
        const S *const q = static_cast<const S *>(a.q) + bh / a.heads * a.q_stride_b + bh % a.heads * a.q_stride_h;
        for (int64_t run = 0; run < runs; ++run)
            for (int64_t done = 0; done < count; done += kRun) {
                const int64_t token = a.has_cls + run * area + begin + done * step, n = min(kRun, count - done);
                pack_rows(q + token * a.q_stride_n, step * a.q_stride_n, n, a.head_dim, q_rows, D);
                columns_product<T>(grad_row(p, bh, token) + axis.entry, step * p.g.stride_n, axis.keys, q_rows, D, n,
                                   sums, D, D);
            }
    }
    for (int64_t key = 0; key < axis.keys; ++key)
        write_gradient(axis.gradient, (index * axis.keys + key) * a.head_dim, 1, sums + key * D, a.head_dim);
}

template <class S> void run(const RelPosBackwardProblem &problem, void *scratch, const ParallelFor &parallel) {
    using T = accumulator<S>;
    Arena arena(scratch);
    const Plan<T> p = plan<T>(problem, parallel.threads, arena);
    for (const Axis<T> &axis : p.axis)
        if (axis.rows)
            for_each_task(
                parallel,
                worker_count(p.workers, axis.queries, 4. * double(axis.queries * axis.keys * problem.forward.head_dim)),
                axis.queries, [&](int64_t, int64_t index) { read_table(p, axis, index); });
    // The tables first: theirs are the longest tasks.
    for_each_task(parallel, p.workers, p.table_tasks + p.q_units, [&](int64_t worker, int64_t task) {
        T *const buffer = p.buffers + worker * p.buffer_size;
        if (task >= p.table_tasks)
            return run_q_unit<S>(p, task - p.table_tasks, buffer);
        for (int i = 0; i < 3; ++i)
            if (p.axis[i].gradient.data) {
                if (task < p.axis[i].queries)
                    return run_table<S>(p, i, task, buffer);
                task -= p.axis[i].queries;
            }
    });
}

} // namespace

int64_t decomposed_rel_pos_backward_scratch(const RelPosBackwardProblem &problem, int64_t threads) {
    return with_storage(problem.forward.dtype, [&](auto storage) {
        Arena arena(nullptr);
        plan<accumulator<decltype(storage)>>(problem, threads, arena);
        return arena.used();
    });
}

void decomposed_rel_pos_backward(const RelPosBackwardProblem &problem, void *scratch, const ParallelFor &parallel) {
    with_storage(problem.forward.dtype, [&](auto storage) { run<decltype(storage)>(problem, scratch, parallel); });
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
