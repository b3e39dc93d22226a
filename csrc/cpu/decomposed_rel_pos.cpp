// Inner products of every query with the T, H and W relative-position tables.
//
//   pack       once: the T and H tables into [index][D][keys], whose entries are broadcast; the W table into
//              [vector of w][D][key][lanes = w], which is read a vector at a time
//   unit       kLines lines of queries along w of one (batch, head, t), a vector of w at a time: lanes = queries, so
//              that few keys per axis waste no lanes. q is transposed into [line][D][lanes]
//   product    kLines x kKeys sums in registers; lines share the T and W entries, each has its own H entries
//   epilogue   the sums of all keys, [key][lanes] in L1, are transposed into rows
//
// Work per query: 2*D*(Kt+Kh+Kw) FLOP; traffic D elements in, Kt+Kh+Kw out.
#include "cpu/level.h"
#include "cpu/pack.h"
#include "cpu/parallel.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kLines = 4, kKeys = 4;
#else
constexpr int kLines = 2, kKeys = 4;
#endif
constexpr int64_t kChunk = 32; // of the head dim

template <class T> struct Plan {
    RelPosProblem a;
    int64_t entries, padded_entries; // of one row; in whole vectors
    int64_t groups;                  // of kLines lines h
    T *table_t, *table_h;            // [index][D][keys]
    T *table_w;                      // [vector of w][D][key][lanes]
    int64_t workers;
    // Per worker.
    int64_t largest_table_row;
    T *table_row; // the keys of one index, or one vector of w: [..][D]
    T *q;         // [kLines][D][lanes]
    T *sums;      // [kLines][padded entries][lanes]
};

template <class T> Plan<T> plan(const RelPosProblem &a, int64_t threads, Arena &arena) {
    constexpr int64_t W = lanes<T>;
    Plan<T> p = {};
    p.a = a;
    const int64_t D = a.head_dim;
    p.entries = a.grid_k.t + a.grid_k.h + a.grid_k.w;
    p.padded_entries = round_up(p.entries, W);
    p.groups = ceil_div(a.grid_q.h, kLines);
    if (a.table_t.data)
        p.table_t = arena.take<T>(a.grid_q.t * D * a.grid_k.t);
    if (a.table_h.data)
        p.table_h = arena.take<T>(a.grid_q.h * D * a.grid_k.h);
    if (a.table_w.data)
        p.table_w = arena.take<T>(round_up(a.grid_q.w, W) * D * a.grid_k.w);
    p.workers = worker_count(threads, a.batch * a.heads * a.grid_q.t * p.groups,
                             2. * double(a.batch * a.heads * volume(a.grid_q)) * double(D) * double(p.entries));
    p.largest_table_row = D * max(W * a.grid_k.w, max(a.grid_k.t, a.grid_k.h));
    p.table_row = arena.take<T>(p.workers * p.largest_table_row);
    p.q = arena.take<T>(p.workers * kLines * D * W);
    p.sums = arena.take<T>(p.workers * kLines * p.padded_entries * W);
    return p;
}

// ---- Tables ----

// to[d][key] of one index of the T or H table.
template <class T>
void pack_keys(const Plan<T> &p, Parameter table, int64_t index, int64_t keys, T *to, int64_t worker) {
    const int64_t D = p.a.head_dim;
    T *const rows = p.table_row + worker * p.largest_table_row;
    read_parameter(rows, table, index * keys * D, 1, keys * D);
    for (int64_t key = 0; key < keys; ++key)
        for (int64_t d = 0; d < D; ++d)
            to[(index * D + d) * keys + key] = rows[key * D + d];
}

// to[d][key][lane] of one vector of w.
template <class T> void pack_queries_w(const Plan<T> &p, int64_t vector, int64_t worker) {
    constexpr int64_t W = lanes<T>;
    const int64_t D = p.a.head_dim, keys = p.a.grid_k.w;
    const int64_t w = vector * W, count = min(W, p.a.grid_q.w - w);
    T *const rows = p.table_row + worker * p.largest_table_row, *const to = p.table_w + w * D * keys;
    read_parameter(rows, p.a.table_w, w * keys * D, 1, count * keys * D);
    for (int64_t key = 0; key < keys; ++key)
        pack_lanes(rows + key * D, keys * D, count, D, T(1), to + key * W, keys * W);
}

// ---- Products ----

enum class Table { shared, per_line, per_query };

// sums[line][key][lane] = <q of the line and lane, entry of the key>, K keys. A table of an axis is read at d * step;
// it is the same for all lines (shared), one for each line, or one for each query along w (a vector per key).
template <class T, Table kTable, int K>
MVIT_INLINE void product_block(const T *q, const T *const (&tables)[kLines], int64_t step, int64_t head_dim, T *sums,
                               int64_t sums_per_line) {
    constexpr int W = lanes<T>;
    // A chunk of d at a time: the rounding of a sum grows with the number of chunks and the length of one, not with
    // their product.
    for (int64_t begin = 0; begin < head_dim; begin += kChunk) {
        vec<T> acc[kLines][K] = {};
        for (int64_t d = begin; d < min(begin + kChunk, head_dim); ++d) {
            vec<T> in[kLines];
#pragma GCC unroll 4
            for (int line = 0; line < kLines; ++line)
                in[line] = load(q + (line * head_dim + d) * W);
#pragma GCC unroll 4
            for (int key = 0; key < K; ++key) {
                if constexpr (kTable == Table::per_line) {
#pragma GCC unroll 4
                    for (int line = 0; line < kLines; ++line)
                        acc[line][key] += in[line] * tables[line][d * step + key];
                } else {
                    const T *const entry = tables[0] + d * step;
                    vec<T> x;
                    if constexpr (kTable == Table::shared)
                        x = broadcast<T>(entry[key]);
                    else
                        x = load(entry + key * W);
#pragma GCC unroll 4
                    for (int line = 0; line < kLines; ++line)
                        acc[line][key] += in[line] * x;
                }
            }
        }
#pragma GCC unroll 4
        for (int line = 0; line < kLines; ++line)
#pragma GCC unroll 4
            for (int key = 0; key < K; ++key) {
                T *const to = sums + line * sums_per_line + key * W;
                store(to, begin == 0 ? acc[line][key] : load(to) + acc[line][key]);
            }
    }
}

// The same for all keys of an axis, kKeys at a time.
template <class T, Table kTable>
void product(const T *q, const T *(&tables)[kLines], int64_t keys, int64_t head_dim, T *sums, int64_t sums_per_line) {
    constexpr int64_t kPerKey = kTable == Table::per_query ? lanes<T> : 1; // elements of an entry
    for (int64_t key = 0; key < keys; key += kKeys) {
        const int64_t step = keys * kPerKey;
        T *const to = sums + key * lanes<T>;
        switch (min(keys - key, kKeys)) {
        case 1:
            product_block<T, kTable, 1>(q, tables, step, head_dim, to, sums_per_line);
            break;
        case 2:
            product_block<T, kTable, 2>(q, tables, step, head_dim, to, sums_per_line);
            break;
        case 3:
            product_block<T, kTable, 3>(q, tables, step, head_dim, to, sums_per_line);
            break;
        default:
            product_block<T, kTable, kKeys>(q, tables, step, head_dim, to, sums_per_line);
        }
        for (const T *&table : tables)
            table += kKeys * kPerKey;
    }
}

// One transposition turns a vector's lanes of keys into as many rows: rows[lane][key] = sums[key][lane],
// lane < queries.
template <class T> void store_rows(const T *sums, int64_t entries, T *rows, int64_t queries) {
    constexpr int W = lanes<T>;
    for (int64_t key = 0; key < entries; key += W) {
        vec<T> block[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i)
            block[i] = load(sums + (key + i) * W);
        transpose<T>(block);
        for (int64_t i = 0; i < queries; ++i)
            store_first(rows + i * entries + key, block[i], entries - key);
    }
}

template <class S> void run_unit(const Plan<accumulator<S>> &p, int64_t unit, int64_t worker) {
    using T = accumulator<S>;
    constexpr int64_t W = lanes<T>;
    const RelPosProblem &a = p.a;
    const Size3 grid = a.grid_q, keys = a.grid_k;
    const int64_t group = unit % p.groups, t = unit / p.groups % grid.t, head = unit / p.groups / grid.t;
    const S *const from = static_cast<const S *>(a.q) + head / a.heads * a.q_stride_b + head % a.heads * a.q_stride_h;
    T *const rows = static_cast<T *>(a.rows) + head * (a.has_cls + volume(grid)) * p.entries;
    if (a.has_cls && t == 0 && group == 0)
        __builtin_memset(rows, 0, size_t(p.entries) * sizeof(T));

    const int64_t D = a.head_dim, sums_per_line = p.padded_entries * W;
    T *const q = p.q + worker * kLines * D * W;
    T *const sums = p.sums + worker * kLines * sums_per_line, *const sums_h = sums + keys.t * W,
             *const sums_w = sums_h + keys.h * W;
    const auto zero = [&](T *to, int64_t count) {
        for (int line = 0; line < kLines; ++line)
            __builtin_memset(to + line * sums_per_line, 0, size_t(count * W) * sizeof(T));
    };
    for (int64_t w = 0; w < grid.w; w += W) {
        const int64_t count = min(W, grid.w - w);
        int64_t h[kLines]; // a line too many repeats the last one, and is not stored
        for (int line = 0; line < kLines; ++line) {
            h[line] = min(group * kLines + line, grid.h - 1);
            pack_lanes(from + (a.has_cls + (t * grid.h + h[line]) * grid.w + w) * a.q_stride_n, a.q_stride_n, count, D,
                       T(1), q + line * D * W, W);
        }
        const T *tables[kLines];
        if (p.table_t) {
            for (const T *&table : tables)
                table = p.table_t + t * D * keys.t;
            product<T, Table::shared>(q, tables, keys.t, D, sums, sums_per_line);
        } else {
            zero(sums, keys.t);
        }
        if (p.table_h) {
            for (int line = 0; line < kLines; ++line)
                tables[line] = p.table_h + h[line] * D * keys.h;
            product<T, Table::per_line>(q, tables, keys.h, D, sums_h, sums_per_line);
        } else {
            zero(sums_h, keys.h);
        }
        if (p.table_w) {
            for (const T *&table : tables)
                table = p.table_w + w * D * keys.w;
            product<T, Table::per_query>(q, tables, keys.w, D, sums_w, sums_per_line);
        } else {
            zero(sums_w, keys.w);
        }
        for (int64_t line = 0; line < min(kLines, grid.h - group * kLines); ++line)
            store_rows(sums + line * sums_per_line, p.entries,
                       rows + (a.has_cls + (t * grid.h + h[line]) * grid.w + w) * p.entries, count);
    }
}

template <class S> void run(const RelPosProblem &problem, void *scratch, const ParallelFor &parallel) {
    using T = accumulator<S>;
    Arena arena(scratch);
    const Plan<T> p = plan<T>(problem, parallel.threads, arena);
    const Size3 queries = problem.grid_q, keys = problem.grid_k;
    const int64_t vectors = ceil_div(queries.w, lanes<T>);
    // Tasks: the indices of T, then those of H, then the vectors of w. A key of an index costs about 8 operations per
    // d.
    const int64_t tasks_t = p.table_t ? queries.t : 0, tasks_h = p.table_h ? queries.h : 0,
                  tasks_w = p.table_w ? vectors : 0;
    const double cost =
        8. * double(tasks_t * keys.t + tasks_h * keys.h + tasks_w * lanes<T> * keys.w) * double(problem.head_dim);
    const int64_t tasks = tasks_t + tasks_h + tasks_w;
    for_each_task(parallel, worker_count(p.workers, tasks, cost), tasks, [&](int64_t worker, int64_t task) {
        if (task < tasks_t)
            pack_keys(p, problem.table_t, task, keys.t, p.table_t, worker);
        else if (task < tasks_t + tasks_h)
            pack_keys(p, problem.table_h, task - tasks_t, keys.h, p.table_h, worker);
        else
            pack_queries_w(p, task - tasks_t - tasks_h, worker);
    });
    for_each_task(parallel, p.workers, problem.batch * problem.heads * queries.t * p.groups,
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
