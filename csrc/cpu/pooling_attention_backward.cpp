// Pooling attention, backward: the gradients of q, k, v and of the rel-pos rows from that of the output.
//
//   P = exp(scale * q k^T + bias - lse)     dP = dO v^T            dS = P * (dP - rowsum(P * dP))
//       / rowsum, which is 1 but for the rounding of lse
//   dq = scale * dS k (+ dO)                dk = scale * dS^T q    dv = P^T dO
//   d rel_pos = sums of dS over the keys of the grid that share a t, an h or a w
//
//   pack       per (batch, head), once: k and v into panels, lanes = keys, and k into rows, lanes = head dim
//   group      up to kGroupRows queries against all keys. P and dP of one group are held in L2, a panel of keys after
//              the other, [panel][row][kPanel]; the row sums need them all before the first dS is known
//   bfloat16   with AVX512-BF16 all five products take pairs; P and dS are rounded to bfloat16 for the last three
//   chunk      a run of groups of one (batch, head), summing dk and dv. One chunk where there are heads enough for the
//              threads; else the sums of several are added in their order, so that a result depends on the number of
//              threads alone
//
// Work per (batch, head): 10*Nq*Nk*D FLOP. Traffic per group: 5 passes over k, v, dk or dv, and 4 over P and dP, in L2.
#include "common/backward.h"
#include "cpu/level.h"
#include "cpu/pack.h"
#include "cpu/parallel.h"
#include "cpu/products.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
namespace {

constexpr int64_t kGroupRows = 48;
constexpr int64_t kGroupBytes = 768 << 10; // P and dP of a group, about a third of an L2 cache
constexpr int64_t kChunkRows = 96;         // fewer queries are not worth a chunk of their own

template <class T> struct Plan {
    AttentionBackwardProblem g;
    bool needs_ds;
    int64_t pair; // kPair of the storage type: elements of the products hold so many along what is summed over
    int64_t pack_dim, padded_dim, panels;
    int64_t heads;                              // of the whole batch
    int64_t blocks, blocks_per_chunk, chunks;   // of a head; a block is kRows queries
    int64_t group_blocks;                       // blocks per group
    int64_t workers, key_slots, sum_slots;      // one slot per head or per worker; per chunk or per worker
    int64_t key_bytes, sum_bytes, worker_bytes; // of one
    char *keys, *sums, *buffers;
};

// k and v as the products read them.
template <class T> struct Keys {
    T *k_panels, *v_panels; // [panels][pack_dim][kPanel]
    T *k_rows;              // [Nk / pair][padded D]
    Keys(const Plan<T> &p, Arena &arena) {
        k_panels = arena.take<T>(p.panels * p.pack_dim * kPanel<T>);
        v_panels = arena.take<T>(p.needs_ds ? p.panels * p.pack_dim * kPanel<T> : 0);
        k_rows = arena.take<T>(p.g.q ? ceil_div(p.g.forward.keys, p.pair) * p.padded_dim : 0);
    }
};

// dk / scale and dv of one chunk: [Nk][padded D].
template <class T> struct Sums {
    T *k, *v;
    Sums(const Plan<T> &p, Arena &arena) {
        k = arena.take<T>(p.g.k ? p.g.forward.keys * p.padded_dim : 0);
        v = arena.take<T>(p.g.v ? p.g.forward.keys * p.padded_dim : 0);
    }
};

// What a worker needs for a group.
template <class T> struct Buffers {
    T *q_panels, *grad_panels; // [block][pack_dim][kRowLanes]
    T *q_rows, *grad_rows;     // [row / pair][padded D]
    T *q_sum;                  // [row][padded D]: dq / scale
    T *p, *ds;                 // [panel][row][kPanel]; ds holds dP first
    T *lse, *delta, *inverse;  // [row]; inverse: 1 / sum of P
    T *sums, *products;        // [row][lanes]: of P, of P * dP
    // For pairs, of one panel: P and dS by pairs of rows, [row / 2][kPanel], and dS by pairs of keys, [row][kPanel /
    // 2].
    T *row_pairs_p, *row_pairs_ds, *key_pairs_ds;
    // With rel_pos, [row][..]: a row of keys, first its bias, then its dS; and sums or terms of it, Kh*Kw and Kw of
    // them.
    T *lines, *planes, *plane_w;
    int64_t line_stride, plane_stride;
    Buffers(const Plan<T> &p, Arena &arena) {
        constexpr int64_t W = lanes<T>;
        const AttentionProblem &a = p.g.forward;
        const int64_t rows = p.group_blocks * kRows, scores = p.panels * rows * kPanel<T>;
        q_panels = arena.take<T>(p.group_blocks * p.pack_dim * kRowLanes<T>);
        grad_panels = arena.take<T>(p.group_blocks * p.pack_dim * kRowLanes<T>);
        q_rows = arena.take<T>(rows * p.padded_dim);
        grad_rows = arena.take<T>(rows * p.padded_dim);
        q_sum = arena.take<T>(rows * p.padded_dim);
        this->p = arena.take<T>(scores);
        ds = arena.take<T>(p.needs_ds ? scores : 0);
        lse = arena.take<T>(rows);
        delta = arena.take<T>(rows);
        inverse = arena.take<T>(rows);
        sums = arena.take<T>(rows * W);
        products = arena.take<T>(rows * W);
        const int64_t pairs = p.pair == 1 ? 0 : rows / 2 * kPanel<T>;
        row_pairs_p = arena.take<T>(pairs);
        row_pairs_ds = arena.take<T>(pairs);
        key_pairs_ds = arena.take<T>(pairs);
        line_stride = a.rel_pos ? p.panels * kPanel<T> + W : 0; // whole vectors are written, from any key on
        plane_stride = a.rel_pos ? round_up(a.grid_k.h * a.grid_k.w, W) + W : 0;
        lines = arena.take<T>(rows * line_stride);
        planes = arena.take<T>(rows * plane_stride);
        plane_w = arena.take<T>(a.rel_pos ? round_up(a.grid_k.w, W) : 0);
    }
};

template <class T, template <class> class Piece> int64_t bytes_of(const Plan<T> &p) {
    Arena arena(nullptr);
    Piece<T>(p, arena);
    return arena.used();
}

template <class S> Plan<accumulator<S>> plan(const AttentionBackwardProblem &g, int64_t threads, Arena &arena) {
    using T = accumulator<S>;
    const AttentionProblem &a = g.forward;
    Plan<T> p = {};
    p.g = g;
    p.needs_ds = g.q || g.k || g.rel_pos;
    p.pair = kPair<S>;
    p.pack_dim = ceil_div(a.head_dim, p.pair);
    p.padded_dim = round_up(a.head_dim, lanes<T>);
    p.panels = ceil_div(a.keys, kPanel<T>);
    p.heads = a.batch * a.heads;
    p.blocks = ceil_div(a.queries, kRows);
    p.workers = worker_count(threads, p.heads * max(1, p.blocks),
                             10. * double(p.heads) * double(a.queries) * double(a.keys) * double(a.head_dim));

    // Enough chunks for the workers, a few more where they stay long.
    const int64_t fewest = ceil_div(p.workers, p.heads), most = p.workers == 1 ? 1 : ceil_div(4 * p.workers, p.heads);
    p.chunks = clamp(min(p.blocks, max(fewest, a.queries / kChunkRows)), 1, most);
    p.blocks_per_chunk = ceil_div(p.blocks, p.chunks);
    p.chunks = max(1, p.blocks ? ceil_div(p.blocks, p.blocks_per_chunk) : 1);
    p.workers = min(p.workers, p.heads * p.chunks);

    const int64_t row_bytes = 2 * p.panels * kPanel<T> * int64_t(sizeof(T));
    p.group_blocks = clamp(min(kGroupRows, kGroupBytes / row_bytes) / kRows, 1, max(1, p.blocks_per_chunk));

    p.key_slots = p.chunks == 1 ? p.workers : p.heads;
    p.sum_slots = p.chunks == 1 ? p.workers : p.heads * p.chunks;
    p.key_bytes = bytes_of<T, Keys>(p);
    p.sum_bytes = bytes_of<T, Sums>(p);
    p.worker_bytes = bytes_of<T, Buffers>(p);
    p.keys = arena.take<char>(p.key_slots * p.key_bytes);
    p.sums = arena.take<char>(p.sum_slots * p.sum_bytes);
    p.buffers = arena.take<char>(p.workers * p.worker_bytes);
    return p;
}

template <class T> Keys<T> keys_of(const Plan<T> &p, int64_t slot) {
    Arena arena(p.keys + slot * p.key_bytes);
    return Keys<T>(p, arena);
}
template <class T> Sums<T> sums_of(const Plan<T> &p, int64_t slot) {
    Arena arena(p.sums + slot * p.sum_bytes);
    return Sums<T>(p, arena);
}
template <class T> Buffers<T> buffers_of(const Plan<T> &p, int64_t worker) {
    Arena arena(p.buffers + worker * p.worker_bytes);
    return Buffers<T>(p, arena);
}

template <class S>
void pack_keys(const Plan<accumulator<S>> &p, int64_t head, int64_t panel, const Keys<accumulator<S>> &keys) {
    using T = accumulator<S>;
    const AttentionProblem &a = p.g.forward;
    const int64_t batch = head / a.heads, h = head % a.heads;
    const int64_t key = panel * kPanel<T>, count = min(kPanel<T>, a.keys - key), at = panel * p.pack_dim * kPanel<T>;
    const S *const k = static_cast<const S *>(a.k) + batch * a.k_stride_b + h * a.k_stride_h + key * a.k_stride_n;
    const S *const v = static_cast<const S *>(a.v) + batch * a.v_stride_b + h * a.v_stride_h + key * a.v_stride_n;
    pack_product_panel(k, a.k_stride_n, count, a.head_dim, T(1), keys.k_panels + at, kPanel<T>);
    if (p.needs_ds)
        pack_product_panel(v, a.v_stride_n, count, a.head_dim, T(1), keys.v_panels + at, kPanel<T>);
    if (p.g.q)
        pack_product_rows(k, a.k_stride_n, count, a.head_dim, keys.k_rows + key / p.pair * p.padded_dim, p.padded_dim);
}

// ---- Bias and its gradient, for one row of keys ----

// plane = bias_h + bias_w of the keys of one t, for one query's row of rel_pos.
template <class T> void bias_plane(Size3 grid, const T *rel_pos, T *plane, T *plane_w) {
    constexpr int W = lanes<T>;
    const T *const bias_h = rel_pos + grid.t, *const bias_w = bias_h + grid.h;
    if (grid.w <= W) {
        const vec<T> w = load_partial(bias_w, int(grid.w));
        for (int64_t h = 0; h < grid.h; ++h) // runs into the next line, which is written after it
            store(plane + h * grid.w, w + bias_h[h]);
        return;
    }
    for (int64_t w = 0; w < grid.w; w += W)
        store(plane_w + w, load_first(bias_w + w, grid.w - w));
    for (int64_t h = 0; h < grid.h; ++h)
        for (int64_t w = 0; w < grid.w; w += W)
            store(plane + h * grid.w + w, load(plane_w + w) + bias_h[h]);
}

// line = bias of the keys of the grid: up to a vector more is written.
template <class T> void bias_line(Size3 grid, const T *rel_pos, const T *plane, T *line) {
    const int64_t area = grid.h * grid.w;
    for (int64_t t = 0; t < grid.t; ++t, line += area)
        for (int64_t i = 0; i < area; i += lanes<T>)
            store(line + i, load(plane + i) + rel_pos[t]);
}

// to[0 .. Kt) = sums of line over the keys of each t; plane = sums over t.
template <class T> void sum_over_planes(Size3 grid, const T *line, T *plane, T *to) {
    constexpr int W = lanes<T>;
    const int64_t area = grid.h * grid.w, whole = area / W * W;
    for (int64_t i = 0; i < area; i += W)
        store(plane + i, vec<T>{});
    for (int64_t t = 0; t < grid.t; ++t, line += area) {
        vec<T> sum = {};
        for (int64_t i = 0; i < whole; i += W) {
            const vec<T> x = load(line + i);
            store(plane + i, load(plane + i) + x);
            sum += x;
        }
        if (whole < area) {
            const vec<T> x = load_partial(line + whole, int(area - whole));
            store(plane + whole, load(plane + whole) + x);
            sum += x;
        }
        to[t] = sum_lanes<T>(sum);
    }
}

// to[0 .. Kh + Kw) = sums of plane over the keys of each h and each w.
template <class T> void sum_in_plane(Size3 grid, const T *plane, T *to) {
    constexpr int W = lanes<T>;
    for (int64_t w = 0; w < grid.w; w += W) {
        vec<T> sum_w = {};
        for (int64_t h = 0; h < grid.h; ++h) {
            const vec<T> x = load_first(plane + h * grid.w + w, grid.w - w);
            sum_w += x;
            to[h] = (w ? to[h] : T(0)) + sum_lanes<T>(x);
        }
        store_first(to + grid.h + w, sum_w, grid.w - w);
    }
}

// ---- A group of queries ----

struct Group {
    int64_t batch, head, query; // the first of its queries
    int64_t rows;
};

// The cls query has no bias.
int64_t first_with_bias(const AttentionProblem &a, const Group &group) { return a.has_cls && group.query == 0 ? 1 : 0; }

template <class T> T *row_of(const Plan<T> &p, T *scores, int64_t panel, int64_t row) {
    return scores + (panel * p.group_blocks * kRows + row) * kPanel<T>;
}

template <class S>
void begin_group(const Plan<accumulator<S>> &p, const Group &group, const Buffers<accumulator<S>> &b) {
    using T = accumulator<S>;
    const AttentionProblem &a = p.g.forward;
    const S *const q = static_cast<const S *>(a.q) + group.batch * a.q_stride_b + group.head * a.q_stride_h +
                       group.query * a.q_stride_n;
    const S *const grad = static_cast<const S *>(p.g.grad_out) + group.batch * p.g.stride_b +
                          group.head * p.g.stride_h + group.query * p.g.stride_n;
    const int64_t block_size = p.pack_dim * kRowLanes<T>;
    for (int64_t r = 0; r < group.rows; r += kRows) {
        const int64_t rows = min(kRows, group.rows - r), at = r / kRows * block_size;
        pack_product_panel(q + r * a.q_stride_n, a.q_stride_n, rows, a.head_dim, T(a.scale), b.q_panels + at,
                           kRowLanes<T>);
        if (p.needs_ds)
            pack_product_panel(grad + r * p.g.stride_n, p.g.stride_n, rows, a.head_dim, T(1), b.grad_panels + at,
                               kRowLanes<T>);
    }
    pack_product_rows(q, a.q_stride_n, group.rows, a.head_dim, b.q_rows, p.padded_dim);
    pack_product_rows(grad, p.g.stride_n, group.rows, a.head_dim, b.grad_rows, p.padded_dim);

    const int64_t first = (group.batch * a.heads + group.head) * a.queries + group.query;
    for (int64_t r = 0; r < group.rows; ++r) {
        b.lse[r] = static_cast<const T *>(a.lse)[first + r];
        b.delta[r] = p.g.grad_lse ? -static_cast<const T *>(p.g.grad_lse)[first + r] : T(0);
        store(b.sums + r * lanes<T>, vec<T>{});
        store(b.products + r * lanes<T>, vec<T>{});
    }
    __builtin_memset(b.q_sum, 0, size_t(group.rows * p.padded_dim) * sizeof(T));

    if (!a.rel_pos)
        return;
    const T *const rel_pos = static_cast<const T *>(a.rel_pos) + group.batch * a.rel_pos_stride_b +
                             group.head * a.rel_pos_stride_h + group.query * a.rel_pos_stride_n;
    // All planes before all lines: a line then reads what has long left the store buffer.
    const int64_t begin = first_with_bias(a, group);
    for (int64_t r = begin; r < group.rows; ++r)
        bias_plane(a.grid_k, rel_pos + r * a.rel_pos_stride_n, b.planes + r * b.plane_stride, b.plane_w);
    for (int64_t r = begin; r < group.rows; ++r) {
        T *const line = b.lines + r * b.line_stride;
        line[0] = 0; // of the cls key, if there is one
        bias_line(a.grid_k, rel_pos + r * a.rel_pos_stride_n, b.planes + r * b.plane_stride, line + a.has_cls);
    }
    if (begin)
        __builtin_memset(b.lines, 0, size_t(a.keys) * sizeof(T));
}

// P and dP of one panel of keys, and its part of rowsum(P * dP).
template <class S, class T = accumulator<S>>
void first_pass(const Plan<T> &p, int64_t rows, int64_t panel, const Keys<T> &keys, const Buffers<T> &b) {
    constexpr int W = lanes<T>;
    const AttentionProblem &a = p.g.forward;
    const int64_t left = min(kPanel<T>, a.keys - panel * kPanel<T>), vectors = ceil_div(left, W);
    const int64_t block_size = p.pack_dim * kRowLanes<T>;
    const T *const k = keys.k_panels + panel * p.pack_dim * kPanel<T>;
    const T *const v = keys.v_panels + panel * p.pack_dim * kPanel<T>;
    for (int64_t r = 0; r < rows; r += kRows) {
        const T *const q = b.q_panels + r / kRows * block_size;
        const int64_t count = min(kRows, rows - r);
        if (a.rel_pos)
            panel_product<S, true, T>(q, k, p.pack_dim, T(a.scale), row_of(p, b.p, panel, r),
                                      b.lines + r * b.line_stride + panel * kPanel<T>, b.line_stride, count, vectors);
        else
            panel_product<S, false, T>(q, k, p.pack_dim, T(a.scale), row_of(p, b.p, panel, r), nullptr, 0, count,
                                       vectors);
    }
    if (p.needs_ds)
        for (int64_t r = 0; r < rows; r += kRows)
            panel_product<S, false, T>(b.grad_panels + r / kRows * block_size, v, p.pack_dim, T(1),
                                       row_of(p, b.ds, panel, r), nullptr, 0, min(kRows, rows - r), vectors);
    const ivec<T> last = first_lanes<T>(int(left - (vectors - 1) * W));
    for (int64_t r = 0; r < rows; ++r) {
        T *const scores = row_of(p, b.p, panel, r);
        vec<T> sums = load(b.sums + r * W), products = load(b.products + r * W);
        for (int64_t i = 0; i < vectors; ++i) {
            vec<T> e = exp_nonpositive<T, kPair<S> == 2>(load(scores + i * W) - b.lse[r]);
            if (i == vectors - 1)
                e = last ? e : vec<T>{};
            store(scores + i * W, e);
            sums += e;
            if (p.needs_ds)
                products += e * load(row_of(p, b.ds, panel, r) + i * W);
        }
        store(b.sums + r * W, sums);
        store(b.products + r * W, products);
    }
}

// What the second pass needs of the whole rows.
template <class T> void between_passes(const Plan<T> &p, int64_t rows, const Buffers<T> &b) {
    for (int64_t r = 0; r < rows; ++r) {
        b.inverse[r] = T(1) / sum_lanes<T>(load(b.sums + r * lanes<T>));
        b.delta[r] += sum_lanes<T>(load(b.products + r * lanes<T>)) * b.inverse[r];
        if (p.pair > 1)
            continue;
        T *const grad = b.grad_rows + r * p.padded_dim; // for dv: instead of P
        for (int64_t c = 0; c < p.padded_dim; c += lanes<T>)
            store(grad + c, load(grad + c) * b.inverse[r]);
    }
}

#if defined(__AVX512BF16__)
// P and dS of rows r and r + 1 of one panel, rounded, as the last three products of second_pass take them.
void round_pairs(const Plan<float> &p, int64_t rows, int64_t r, int64_t panel, int64_t left, const Buffers<float> &b) {
    constexpr int W = lanes<float>;
    constexpr int64_t P = kPanel<float>;
    const float *const probabilities = row_of(p, b.p, panel, r), *const gradients = row_of(p, b.ds, panel, r);
    for (int64_t i = 0; i < left; i += W) {
        halves weight[2] = {}, ds[2] = {};
        for (int64_t j = 0; j < min(2, rows - r); ++j) {
            const vec<float> normal = load(probabilities + j * P + i) * b.inverse[r + j];
            weight[j] = narrow(bf16{}, normal);
            if (!p.needs_ds)
                continue;
            vec<float> d = normal * (load(gradients + j * P + i) - b.delta[r + j]);
            if (left - i < W)
                d = first_lanes<float>(int(left - i)) ? d : vec<float>{};
            ds[j] = narrow(bf16{}, d);
            store_halves(b.key_pairs_ds + ((r + j) * P + i) / 2, ds[j]);
            if (p.g.rel_pos)
                store(b.lines + (r + j) * b.line_stride + panel * P + i, d);
        }
        store(b.row_pairs_p + r / 2 * P + i, interleave(weight[0], weight[1]));
        store(b.row_pairs_ds + r / 2 * P + i, interleave(ds[0], ds[1]));
    }
}
#endif

// dS of one panel of keys and what it adds to dq, dk and dv.
template <class S, class T = accumulator<S>>
void second_pass(const Plan<T> &p, int64_t rows, int64_t panel, const Keys<T> &keys, const Sums<T> &sums,
                 const Buffers<T> &b) {
    constexpr int W = lanes<T>;
    const int64_t key = panel * kPanel<T>, left = min(kPanel<T>, p.g.forward.keys - key), D = p.padded_dim;
#if defined(__AVX512BF16__)
    if constexpr (kPair<S> == 2) {
        for (int64_t r = 0; r < rows; r += 2)
            round_pairs(p, rows, r, panel, left, b);
        const int64_t row_pairs = ceil_div(rows, 2);
        if (p.g.v)
            columns_product<S>(b.row_pairs_p, kPanel<T>, left, b.grad_rows, D, row_pairs, sums.v + key * D, D, D);
        if (p.g.k)
            columns_product<S>(b.row_pairs_ds, kPanel<T>, left, b.q_rows, D, row_pairs, sums.k + key * D, D, D);
        if (p.g.q)
            rows_product<S>(b.key_pairs_ds, kPanel<T> / 2, rows, keys.k_rows + key / 2 * D, D, ceil_div(left, 2),
                            b.q_sum, D, D);
        return;
    }
#endif
    const T *const probabilities = row_of(p, b.p, panel, 0);
    T *const ds = row_of(p, b.ds, panel, 0);
    if (p.g.v)
        columns_product<S>(probabilities, kPanel<T>, left, b.grad_rows, D, rows, sums.v + key * D, D, D);
    if (!p.needs_ds)
        return;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < left; i += W) {
            const int64_t at = r * kPanel<T> + i;
            const vec<T> d = load(probabilities + at) * b.inverse[r] * (load(ds + at) - b.delta[r]);
            store(ds + at, d);
            if (p.g.rel_pos)
                store(b.lines + r * b.line_stride + key + i, d);
        }
    if (p.g.k)
        columns_product<S>(ds, kPanel<T>, left, b.q_rows, D, rows, sums.k + key * D, D, D);
    if (p.g.q)
        rows_product<S>(ds, kPanel<T>, rows, keys.k_rows + key * D, D, left, b.q_sum, D, D);
}

template <class S> void end_group(const Plan<accumulator<S>> &p, const Group &group, const Buffers<accumulator<S>> &b) {
    using T = accumulator<S>;
    constexpr int W = lanes<T>;
    const AttentionProblem &a = p.g.forward;
    const int64_t first = (group.batch * a.heads + group.head) * a.queries + group.query;
    for (int64_t r = 0; r < group.rows; ++r) {
        const bool is_cls = a.has_cls && group.query + r == 0;
        if (p.g.q) {
            const bool residual = a.residual == Residual::all || (a.residual == Residual::no_cls && !is_cls);
            const S *const grad = static_cast<const S *>(p.g.grad_out) + group.batch * p.g.stride_b +
                                  group.head * p.g.stride_h + (group.query + r) * p.g.stride_n;
            S *const to = static_cast<S *>(p.g.q) + (first + r) * a.head_dim;
            for (int64_t c = 0; c < a.head_dim; c += W) {
                vec<T> row = load(b.q_sum + r * p.padded_dim + c) * T(a.scale);
                if (residual)
                    row += load_first(grad + c, a.head_dim - c);
                store_first(to + c, row, a.head_dim - c);
            }
        }
    }
    if (!p.g.rel_pos)
        return;
    const int64_t entries = a.grid_k.t + a.grid_k.h + a.grid_k.w, begin = first_with_bias(a, group);
    T *const to = static_cast<T *>(p.g.rel_pos) + first * entries;
    if (begin)
        __builtin_memset(to, 0, size_t(entries) * sizeof(T));
    for (int64_t r = begin; r < group.rows; ++r)
        sum_over_planes(a.grid_k, b.lines + r * b.line_stride + a.has_cls, b.planes + r * b.plane_stride,
                        to + r * entries);
    for (int64_t r = begin; r < group.rows; ++r)
        sum_in_plane(a.grid_k, b.planes + r * b.plane_stride, to + r * entries + a.grid_k.t);
}

template <class S>
void write_rows(const accumulator<S> *sums, int64_t n, const AttentionProblem &a, accumulator<S> scale, void *out,
                int64_t first) {
    using T = accumulator<S>;
    const int64_t padded_dim = round_up(a.head_dim, lanes<T>);
    S *to = static_cast<S *>(out) + first * a.head_dim;
    for (int64_t i = 0; i < n; ++i, to += a.head_dim, sums += padded_dim)
        for (int64_t c = 0; c < a.head_dim; c += lanes<T>)
            store_first(to + c, load(sums + c) * scale, a.head_dim - c);
}

template <class S> void run_chunk(const Plan<accumulator<S>> &p, int64_t task, int64_t worker) {
    using T = accumulator<S>;
    const AttentionProblem &a = p.g.forward;
    const bool alone = p.chunks == 1;
    const int64_t head = task / p.chunks, chunk = task % p.chunks;
    const Keys<T> keys = keys_of(p, alone ? worker : head);
    const Sums<T> sums = sums_of(p, alone ? worker : task);
    const Buffers<T> b = buffers_of(p, worker);
    if (alone)
        for (int64_t panel = 0; panel < p.panels; ++panel)
            pack_keys<S>(p, head, panel, keys);
    for (T *const sum : {p.g.k ? sums.k : nullptr, p.g.v ? sums.v : nullptr})
        if (sum)
            __builtin_memset(sum, 0, size_t(a.keys * p.padded_dim) * sizeof(T));

    const int64_t end = min(a.queries, (chunk + 1) * p.blocks_per_chunk * kRows);
    const int64_t group_rows = p.group_blocks * kRows;
    for (int64_t query = chunk * p.blocks_per_chunk * kRows; query < end; query += group_rows) {
        const Group group = {head / a.heads, head % a.heads, query, min(group_rows, end - query)};
        begin_group<S>(p, group, b);
        for (int64_t panel = 0; panel < p.panels; ++panel)
            first_pass<S>(p, group.rows, panel, keys, b);
        between_passes(p, group.rows, b);
        for (int64_t panel = 0; panel < p.panels; ++panel)
            second_pass<S>(p, group.rows, panel, keys, sums, b);
        end_group<S>(p, group, b);
    }
    if (alone) {
        if (p.g.k)
            write_rows<S>(sums.k, a.keys, a, T(a.scale), p.g.k, head * a.keys);
        if (p.g.v)
            write_rows<S>(sums.v, a.keys, a, T(1), p.g.v, head * a.keys);
    }
}

// dk and dv of one panel of keys of a head: its chunks' sums, in order, added into the first one's.
template <class S> void add_chunks(const Plan<accumulator<S>> &p, int64_t head, int64_t panel) {
    using T = accumulator<S>;
    const AttentionProblem &a = p.g.forward;
    const int64_t key = panel * kPanel<T>, count = min(kPanel<T>, a.keys - key);
    const int64_t begin = key * p.padded_dim, size = count * p.padded_dim;
    const auto add = [&](T *Sums<T>::*member, T scale, void *out) {
        T *const total = sums_of(p, head * p.chunks).*member + begin;
        for (int64_t chunk = 1; chunk < p.chunks; ++chunk) {
            const T *const sum = sums_of(p, head * p.chunks + chunk).*member + begin;
            for (int64_t i = 0; i < size; i += lanes<T>)
                store(total + i, load(total + i) + load(sum + i));
        }
        write_rows<S>(total, count, a, scale, out, head * a.keys + key);
    };
    if (p.g.k)
        add(&Sums<T>::k, T(a.scale), p.g.k);
    if (p.g.v)
        add(&Sums<T>::v, T(1), p.g.v);
}

template <class S> void run(const AttentionBackwardProblem &problem, void *scratch, const ParallelFor &parallel) {
    using T = accumulator<S>;
    Arena arena(scratch);
    const Plan<T> p = plan<S>(problem, parallel.threads, arena);
    const int64_t panels = p.heads * p.panels;
    const double elements = double(p.heads * problem.forward.keys) * double(problem.forward.head_dim);
    if (p.chunks > 1)
        for_each_task(parallel, worker_count(p.workers, panels, 3 * elements), panels, [&](int64_t, int64_t task) {
            pack_keys<S>(p, task / p.panels, task % p.panels, keys_of(p, task / p.panels));
        });
    for_each_task(parallel, p.workers, p.heads * p.chunks,
                  [&](int64_t worker, int64_t task) { run_chunk<S>(p, task, worker); });
    if (p.chunks > 1 && (problem.k || problem.v))
        for_each_task(parallel, worker_count(p.workers, panels, 2 * double(p.chunks) * elements), panels,
                      [&](int64_t, int64_t task) { add_chunks<S>(p, task / p.panels, task % p.panels); });
}

} // namespace

int64_t pooling_attention_backward_scratch(const AttentionBackwardProblem &problem, int64_t threads) {
    return with_storage(problem.forward.dtype, [&](auto storage) {
        Arena arena(nullptr);
        plan<decltype(storage)>(problem, threads, arena);
        return arena.used();
    });
}

void pooling_attention_backward(const AttentionBackwardProblem &problem, void *scratch, const ParallelFor &parallel) {
    with_storage(problem.forward.dtype, [&](auto storage) { run<decltype(storage)>(problem, scratch, parallel); });
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
