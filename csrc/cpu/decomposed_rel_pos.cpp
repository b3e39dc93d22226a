// Inner products of every query with the T, H and W relative-position tables.
//
//   pack       once: each table into panels [query index][D][keys], lanes = keys
//   unit       kQueries lines of queries along w of one (batch, head, t), copied in the accumulation type
//   product    queries that share an index on an axis share its panel: kQueries of them x 2 vectors of keys in registers.
//              They lie along w for the T and H tables, along h for the W table
//
// Work per query: 2*D*(Kt+Kh+Kw) FLOP, each of the three rounded up to whole vectors; traffic D elements in, Kt+Kh+Kw out.
#include "cpu/level.h"
#include "cpu/pack.h"
#include "cpu/parallel.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kQueries = 8;
#else
constexpr int kQueries = 4;
#endif

template <class T> struct Axis {
    Parameter table;
    int64_t queries, keys, width; // width: keys in whole vectors
    T *panels;                    // [queries][D][width]
};

template <class T> struct Plan {
    RelPosProblem a;
    int64_t padded_dim, entries;
    Axis<T> axis[3];
    int64_t groups; // of kQueries lines h
    int64_t workers;
    int64_t worker_rows;
    T *table_rows; // per worker: the keys of one table index, [keys][D]
    T *q_rows;     // per worker: [kQueries][Qw][padded D]
    int64_t table_rows_per_worker, q_rows_per_worker;
};

template <class T> Plan<T> plan(const RelPosProblem &a, int64_t threads, Arena &arena) {
    Plan<T> p = {};
    p.a = a;
    p.padded_dim = round_up(a.head_dim, lanes<T>);
    p.entries = a.grid_k.t + a.grid_k.h + a.grid_k.w;
    const Parameter tables[3] = {a.table_t, a.table_h, a.table_w};
    const int64_t queries[3] = {a.grid_q.t, a.grid_q.h, a.grid_q.w}, keys[3] = {a.grid_k.t, a.grid_k.h, a.grid_k.w};
    int64_t width = 0, largest = 0;
    for (int i = 0; i < 3; ++i) {
        Axis<T> &axis = p.axis[i];
        axis = {tables[i], queries[i], keys[i], round_up(keys[i], lanes<T>), nullptr};
        if (axis.table.data) {
            axis.panels = arena.take<T>(axis.queries * a.head_dim * axis.width);
            width += axis.width;
            largest = max(largest, keys[i]);
        }
    }
    p.groups = ceil_div(a.grid_q.h, kQueries);
    const int64_t units = a.batch * a.heads * a.grid_q.t * p.groups;
    p.workers = worker_count(threads, units,
                             2. * double(a.batch * a.heads * volume(a.grid_q)) * double(a.head_dim) * double(width));
    p.table_rows_per_worker = largest * a.head_dim;
    p.q_rows_per_worker = kQueries * a.grid_q.w * p.padded_dim;
    p.table_rows = arena.take<T>(p.workers * p.table_rows_per_worker);
    p.q_rows = arena.take<T>(p.workers * p.q_rows_per_worker);
    return p;
}

// to[r * to_stride + j] = <q row r, key j of the panel>, j < V vectors, of the last one `valid` lanes.
template <class T, int R, int V>
MVIT_INLINE void product_block(const T *q, int64_t q_stride, const T *panel, int64_t width, int64_t head_dim, T *to,
                               int64_t to_stride, int64_t valid) {
    constexpr int W = lanes<T>;
    const T *rows[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
        rows[r] = q + r * q_stride;
    vec<T> acc[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v)
            acc[r][v] = vec<T>{};
    for (int64_t d = 0; d < head_dim; ++d, panel += width) {
        vec<T> keys[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v)
            keys[v] = load(panel + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v)
                acc[r][v] += keys[v] * rows[r][d];
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v + 1 < V; ++v)
            store(to + r * to_stride + v * W, acc[r][v]);
        store_first(to + r * to_stride + (V - 1) * W, acc[r][V - 1], valid);
    }
}

// The same for any number of queries and all keys of an axis.
template <class T>
void product(const Axis<T> &axis, int64_t index, const T *q, int64_t q_stride, int64_t queries, int64_t head_dim, T *to,
             int64_t to_stride) {
    constexpr int64_t W = lanes<T>;
    const T *const panel = axis.panels + index * head_dim * axis.width;
    for (int64_t key = 0; key < axis.keys;) {
        const bool two = axis.keys - key > W;
        const int64_t valid = axis.keys - key - (two ? W : 0);
        const auto call = [&](auto rows, int64_t i) {
            if (two)
                product_block<T, rows, 2>(q + i * q_stride, q_stride, panel + key, axis.width, head_dim,
                                          to + i * to_stride + key, to_stride, valid);
            else
                product_block<T, rows, 1>(q + i * q_stride, q_stride, panel + key, axis.width, head_dim,
                                          to + i * to_stride + key, to_stride, valid);
        };
        int64_t i = 0;
        for (; i + kQueries <= queries; i += kQueries)
            call(std::integral_constant<int, kQueries>{}, i);
        for (; i < queries; ++i)
            call(std::integral_constant<int, 1>{}, i);
        key += two ? 2 * W : W;
    }
}

template <class S> void run_unit(const Plan<accumulator<S>> &p, int64_t unit, int64_t worker) {
    using T = accumulator<S>;
    const RelPosProblem &a = p.a;
    const Size3 grid = a.grid_q;
    const int64_t group = unit % p.groups, t = unit / p.groups % grid.t, bh = unit / p.groups / grid.t;
    const int64_t batch = bh / a.heads, head = bh % a.heads;
    const int64_t h = group * kQueries, lines = min(kQueries, grid.h - h);
    const int64_t first = a.has_cls + (t * grid.h + h) * grid.w; // token
    const S *const q = static_cast<const S *>(a.q) + batch * a.q_stride_b + head * a.q_stride_h;
    T *const rows = static_cast<T *>(a.rows) + bh * (a.has_cls + volume(grid)) * p.entries;
    T *const q_rows = p.q_rows + worker * p.q_rows_per_worker;

    if (a.has_cls && t == 0 && group == 0)
        __builtin_memset(rows, 0, size_t(p.entries) * sizeof(T));
    pack_rows(q + first * a.q_stride_n, a.q_stride_n, lines * grid.w, a.head_dim, q_rows, p.padded_dim);

    const int64_t line = grid.w * p.padded_dim; // from one h to the next in q_rows
    T *to = rows + first * p.entries;
    const auto zero = [&](int64_t keys) {
        for (int64_t i = 0; i < lines * grid.w; ++i)
            __builtin_memset(to + i * p.entries, 0, size_t(keys) * sizeof(T));
    };
    const Axis<T> &axis_t = p.axis[0], &axis_h = p.axis[1], &axis_w = p.axis[2];
    if (axis_t.panels)
        product(axis_t, t, q_rows, p.padded_dim, lines * grid.w, a.head_dim, to, p.entries);
    else
        zero(axis_t.keys);
    to += axis_t.keys;
    if (axis_h.panels)
        for (int64_t i = 0; i < lines; ++i)
            product(axis_h, h + i, q_rows + i * line, p.padded_dim, grid.w, a.head_dim, to + i * grid.w * p.entries,
                    p.entries);
    else
        zero(axis_h.keys);
    to += axis_h.keys;
    if (axis_w.panels)
        for (int64_t w = 0; w < grid.w; ++w)
            product(axis_w, w, q_rows + w * p.padded_dim, line, lines, a.head_dim, to + w * p.entries,
                    grid.w * p.entries);
    else
        zero(axis_w.keys);
}

template <class T> void pack_table(const Plan<T> &p, const Axis<T> &axis, int64_t index, int64_t worker) {
    const int64_t size = axis.keys * p.a.head_dim;
    T *const rows = p.table_rows + worker * p.table_rows_per_worker;
    read_parameter(rows, axis.table, index * size, 1, size);
    pack_panel(rows, p.a.head_dim, axis.keys, p.a.head_dim, T(1), axis.panels + index * p.a.head_dim * axis.width,
               axis.width);
}

template <class S> void run(const RelPosProblem &problem, void *scratch, const ParallelFor &parallel) {
    using T = accumulator<S>;
    Arena arena(scratch);
    const Plan<T> p = plan<T>(problem, parallel.threads, arena);
    for (const Axis<T> &axis : p.axis)
        if (axis.panels) {
            const int64_t workers = worker_count(p.workers, axis.queries,
                                                 8. * double(axis.queries * axis.keys * problem.head_dim));
            for_each_task(parallel, workers, axis.queries,
                          [&](int64_t worker, int64_t index) { pack_table(p, axis, index, worker); });
        }
    for_each_task(parallel, p.workers, problem.batch * problem.heads * problem.grid_q.t * p.groups,
                  [&](int64_t worker, int64_t unit) { run_unit<S>(p, unit, worker); });
}

} // namespace

int64_t decomposed_rel_pos_scratch(const RelPosProblem &problem, int64_t threads) {
    return with_storage(problem.dtype, [&](auto storage) {
        Arena arena(nullptr);
        plan<accumulator<decltype(storage)>>(problem, threads, arena);
        return arena.used();
    });
}

void decomposed_rel_pos(const RelPosProblem &problem, void *scratch, const ParallelFor &parallel) {
    with_storage(problem.dtype, [&](auto storage) { run<decltype(storage)>(problem, scratch, parallel); });
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
