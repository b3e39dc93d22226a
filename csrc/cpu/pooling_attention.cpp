// Pooling attention, forward: softmax(scale * q k^T + bias) v (+ q), without ever holding the score matrix.
//
//   pack       per (batch, head), once: k into panels [keys / panel][D][panel], lanes = keys; v into rows padded to
//              whole vectors (v itself where it already is that)
//   task       up to 48 queries of one (batch, head), in blocks of R = kRows; keys in tiles of at most kKeyTile
//   S          R x (P vectors of keys) in registers, one broadcast of q and one load of k per FMA group; the bias of
//              the rel-pos row is added and the running maximum taken on the way out, into L1
//   softmax    in L1: exp(S - max), row sums; rescaling of O only where a maximum rises
//   O += P v   a few rows x a few vectors of D in registers, key chunks small enough that v stays in L1 for all R rows
//   bfloat16   with AVX512-BF16 both products take pairs: of the head dim in S, of keys in P v, P rounded to bfloat16
//   epilogue   / sum, + q (residual pooling), one rounding, store as (B, Nq, H, D)
//
// Work per (batch, head): 4*Nq*Nk*D FLOP; traffic Nq*D elements in and out, and 2*Nk*D per 48 queries out of L2.
#include "cpu/level.h"
#include "cpu/parallel.h"
#include "cpu/products.h"

namespace mvit::cpu::MVIT_CPU_LEVEL_NAME {
namespace {

constexpr int64_t kTaskRows = 48;
constexpr int64_t kKeyTile = 512;   // S of one block is at most kRows * kKeyTile elements: half of L1
constexpr int64_t kValueChunk = 64; // keys whose v stays in L1 while all rows of a block use it

template <class T> constexpr int64_t kScoreStride = kKeyTile + lanes<T>; // a bias row ends in a whole vector

template <class T> struct Plan {
    AttentionProblem a;
    int64_t padded_dim, panels;
    int64_t pack_dim, pack_keys; // elements along the head dim, and along the keys of v: of kPair each
    int64_t key_tile, key_tiles;
    int64_t blocks, blocks_per_task, tasks_per_head; // blocks of kRows queries
    bool v_in_place;
    T *k_panels; // [B*H][panels][pack_dim][kPanel]
    T *v_rows;   // [B*H][pack_keys][padded D]
    int64_t workers;

    // Per worker.
    T *q_panels;          // [blocks_per_task][pack_dim][kRowLanes]
    T *scores;            // [kRows][kScoreStride]
    T *sums;              // O before the division: [blocks_per_task * kRows][padded D]
    T *row_max, *row_sum; // [blocks_per_task * kRows]
    T *bias_planes;       // [kRows][plane_size]
    int64_t plane_size;   // a vector, Kh*Kw and a vector
    int64_t worker_bytes; // distance of one worker's buffers from the next one's
};

template <class S> Plan<accumulator<S>> plan(const AttentionProblem &a, int64_t threads, Arena &arena) {
    using T = accumulator<S>;
    constexpr int64_t W = lanes<T>;
    Plan<T> p = {};
    p.a = a;
    p.padded_dim = round_up(a.head_dim, W);
    p.panels = ceil_div(a.keys, kPanel<T>);
    p.pack_dim = ceil_div(a.head_dim, kPair<S>);
    p.pack_keys = ceil_div(a.keys, kPair<S>);
    p.key_tiles = ceil_div(a.keys, kKeyTile);
    p.key_tile = round_up(ceil_div(a.keys, p.key_tiles), kPanel<T>);
    p.blocks = ceil_div(a.queries, kRows);

    const int64_t heads = a.batch * a.heads;
    p.blocks_per_task = clamp(heads * p.blocks / (8 * threads), 1, kTaskRows / kRows);
    p.tasks_per_head = ceil_div(p.blocks, p.blocks_per_task);
    p.workers = worker_count(threads, heads * p.tasks_per_head,
                             4. * double(heads) * double(a.queries) * double(a.keys) * double(a.head_dim));

    p.v_in_place = sizeof(S) == sizeof(T) && a.head_dim == p.padded_dim && a.v_stride_n == a.head_dim &&
                   reinterpret_cast<uintptr_t>(a.v) % kVectorBytes == 0 && a.v_stride_b % W == 0 &&
                   a.v_stride_h % W == 0;
    p.k_panels = arena.take<T>(heads * p.panels * p.pack_dim * kPanel<T>);
    p.v_rows = p.v_in_place ? nullptr : arena.take<T>(heads * p.pack_keys * p.padded_dim);

    const int64_t rows = p.blocks_per_task * kRows;
    const int64_t before = arena.used();
    p.q_panels = arena.take<T>(p.blocks_per_task * p.pack_dim * kRowLanes<T>);
    p.scores = arena.take<T>(kRows * kScoreStride<T>);
    p.sums = arena.take<T>(rows * p.padded_dim);
    p.row_max = arena.take<T>(rows);
    p.row_sum = arena.take<T>(rows);
    if (a.rel_pos) {
        p.plane_size = a.grid_k.h * a.grid_k.w + 2 * W;
        p.bias_planes = arena.take<T>(kRows * p.plane_size);
    }
    p.worker_bytes = arena.used() - before;
    arena.take<char>((p.workers - 1) * p.worker_bytes);
    return p;
}

// ---- The two products ----

// s[r][0 .. V vectors) = sum over d of q[d][r] * k[d][...] (+ s if kBias), and its maximum over lanes into row_max[r].
// Of the last vector only `valid` lanes are keys; the others become -infinity. `scale` is for pairs, packed without it.
template <class S, int R, int V, bool kBias, class T = accumulator<S>>
void scores_block(const T *q, const T *k, int64_t pack_dim, T scale, T *s, vec<T> *row_max, int valid) {
    constexpr int W = lanes<T>;
    vec<T> acc[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            acc[r][v] = vec<T>{};
    for (int64_t d = 0; d < pack_dim; ++d, q += kRowLanes<T>, k += kPanel<T>) {
        vec<T> keys[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            keys[v] = load(k + v * W);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                multiply_add<S>(acc[r][v], keys[v], q[r]);
    }
    if constexpr (kPair<S> > 1) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                acc[r][v] *= scale;
    }
    // The bias comes last: sums that start from it would round at its magnitude in every step.
    if constexpr (kBias) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v)
                acc[r][v] += load(s + r * kScoreStride<T> + v * W);
    }
    if (valid < W) {
        const ivec<T> is_key = first_lanes<T>(valid);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
            acc[r][V - 1] = is_key ? acc[r][V - 1] : broadcast<T>(-__builtin_huge_valf());
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        vec<T> largest = row_max[r];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            store(s + r * kScoreStride<T> + v * W, acc[r][v]);
            largest = max_or_second<T>(largest, acc[r][v]);
        }
        row_max[r] = largest;
    }
}

template <class S, int R, bool kBias, class T = accumulator<S>>
void all_scores(const T *q, const T *k, int64_t pack_dim, T scale, int64_t keys, T *s, vec<T> *row_max) {
    constexpr int W = lanes<T>;
    for (int64_t key = 0; key < keys; key += kPanel<T>, k += pack_dim * kPanel<T>) {
        const int64_t left = keys - key;
        if (left >= kPanel<T>)
            scores_block<S, R, kPanelVectors, kBias>(q, k, pack_dim, scale, s + key, row_max, W);
        else
            with_constant<kPanelVectors>(ceil_div(left, W), [&](auto vectors) {
                scores_block<S, R, vectors, kBias>(q, k, pack_dim, scale, s + key, row_max, int((left - 1) % W + 1));
            });
    }
}

// A chunk of keys at a time: the rounding of a long row of keys grows with the number of chunks and of keys in one, not
// with their product.
template <class S, int R, class T = accumulator<S>>
void all_values(const T *p, const T *v, int64_t value_stride, int64_t keys, T *sums, int64_t padded_dim) {
    for (int64_t key = 0; key < keys; key += kValueChunk)
        rows_product<S>(p + key / kPair<S>, kScoreStride<T>, R, v + key / kPair<S> * value_stride, value_stride,
                        ceil_div(min(kValueChunk, keys - key), kPair<S>), sums, padded_dim, padded_dim);
}

// ---- Bias ----

// The keys [first, first + count) of a tile, in the grid, and the lines h of the (h, w) plane that they lie on.
struct KeyRange {
    bool has_cls; // the tile begins with the cls key, which is not in the grid
    int64_t first, count;
    int64_t h_begin, h_end;
};

KeyRange key_range(const AttentionProblem &a, int64_t first, int64_t keys) {
    const bool cls = a.has_cls && first == 0;
    KeyRange range = {cls, first - a.has_cls + cls, keys - cls, 0, a.grid_k.h};
    const int64_t area = a.grid_k.h * a.grid_k.w, in_plane = range.first % area;
    if (in_plane + range.count <= area) {
        range.h_begin = in_plane / a.grid_k.w;
        range.h_end = ceil_div(in_plane + range.count, a.grid_k.w);
    }
    return range;
}

// plane[h][w] = bias_h[h] + bias_w[w] on the lines of the range, from one query's row of rel_pos. Writes whole vectors:
// what runs over the end of a line is overwritten, as the next line and all columns to the left come later.
template <class T> void bias_plane(Size3 grid, const KeyRange &range, const T *rel_pos, T *plane) {
    constexpr int W = lanes<T>;
    const T *const bias_h = rel_pos + grid.t, *const bias_w = bias_h + grid.h;
    for (int64_t w = (grid.w - 1) / W * W; w >= 0; w -= W) {
        const vec<T> line = load_first(bias_w + w, grid.w - w);
        for (int64_t h = range.h_begin; h < range.h_end; ++h)
            store(plane + h * grid.w + w, line + bias_h[h]);
    }
}

// to[i] = bias of key i of the tile, in aligned whole vectors. One that crosses planes is put together from the end of
// one and the beginning of the next, read so that its first element lies where the other ends: from before the plane.
template <class T> void bias_row(Size3 grid, const KeyRange &range, const T *bias_t, const T *plane, T *to) {
    constexpr int W = lanes<T>;
    const int64_t area = grid.h * grid.w, keys = range.has_cls + range.count;
    int64_t in_plane = range.first % area - range.has_cls;
    bias_t += range.first / area;
    for (int64_t i = 0; i < keys; i += W, in_plane += W) {
        vec<T> bias = load(plane + in_plane) + *bias_t;
        while (in_plane + W > area && i + area - in_plane < keys) {
            const int64_t end = area - in_plane;
            bias = first_lanes<T>(int(end)) ? bias : load(plane - end) + *++bias_t;
            in_plane -= area;
        }
        store(to + i, bias);
    }
    if (range.has_cls)
        to[0] = 0;
}

// ---- One block of queries against one tile of keys ----

// This worker's copy of a buffer that the plan gives for worker 0.
template <class T> T *of_worker(const Plan<T> &p, T *buffer, int64_t worker) {
    return reinterpret_cast<T *>(reinterpret_cast<char *>(buffer) + worker * p.worker_bytes);
}

template <class T> struct Block {
    int64_t batch, head, query; // the first of its queries
    int64_t rows;
    T *q_panel, *sums, *row_max, *row_sum;
};

// P = exp(S - subtract) in the beginning of a row of S, never beyond what has been read; gives the row's sum. With
// pairs P is rounded, and the sum is that of P before.
template <class S, class T = accumulator<S>> T exponentiate_row(T *s, int64_t keys, T subtract) {
    constexpr int W = lanes<T>;
    constexpr bool pairs = kPair<S> == 2;
    const auto power = [&](int64_t key) __attribute__((always_inline)) {
        return exp_nonpositive<T, pairs>(load(s + key) - subtract);
    };
    vec<T> sum = {}, other = {};
    int64_t key = 0;
    for (; key + W < keys; key += 2 * W) {
        const vec<T> first = power(key), second = power(key + W);
        sum += first;
        other += second;
        if constexpr (pairs) {
            store(s + key / 2, round_both(first, second));
        } else {
            store(s + key, first);
            store(s + key + W, second);
        }
    }
    if (key < keys) {
        const vec<T> last = power(key);
        sum += last;
        if constexpr (pairs)
            store_halves(s + key / 2, narrow(bf16{}, last));
        else
            store(s + key, last);
    }
    return sum_lanes<T>(sum + other);
}

// The first `keys` of S are turned into P, O and the row sum rescaled where the maximum grew.
template <class S, class T = accumulator<S>>
void softmax_tile(const Block<T> &block, T *s, const vec<T> *tile_max, int64_t keys, int64_t padded_dim) {
    constexpr T kNone = -__builtin_huge_valf();
    for (int64_t r = 0; r < block.rows; ++r, s += kScoreStride<T>) {
        const T before = block.row_max[r], tile = max_lanes<T>(tile_max[r]);
        const T now = tile > before ? tile : before;
        if (now != before && before != kNone) {
            const T rescale = exp_nonpositive<T>(broadcast<T>(before - now))[0];
            for (int64_t c = 0; c < padded_dim; c += lanes<T>)
                store(block.sums + r * padded_dim + c, load(block.sums + r * padded_dim + c) * rescale);
            block.row_sum[r] *= rescale;
        }
        // With all scores -inf so far there is nothing to subtract: exp(-inf - 0) is 0. If that stays so, O is 0 / 0.
        block.row_sum[r] += exponentiate_row<S>(s, keys, now == kNone ? T(0) : now);
        block.row_max[r] = now;
    }
}

template <class S, int R>
void run_tile(const Plan<accumulator<S>> &p, const Block<accumulator<S>> &block, int64_t tile, int64_t worker) {
    using T = accumulator<S>;
    const AttentionProblem &a = p.a;
    const int64_t first = tile * p.key_tile, keys = min(p.key_tile, a.keys - first);
    const int64_t head = block.batch * a.heads + block.head;
    T *const s = of_worker(p, p.scores, worker);
    const T *const k = p.k_panels + (head * p.panels * kPanel<T> + first) * p.pack_dim;
    const T *const v = p.v_in_place
                           ? static_cast<const T *>(a.v) + block.batch * a.v_stride_b + block.head * a.v_stride_h
                           : p.v_rows + head * p.pack_keys * p.padded_dim;
    vec<T> tile_max[R];
    for (int r = 0; r < R; ++r)
        tile_max[r] = broadcast<T>(-__builtin_huge_valf());
    if (a.rel_pos) {
        const T *const rel_pos = static_cast<const T *>(a.rel_pos) + block.batch * a.rel_pos_stride_b +
                                 block.head * a.rel_pos_stride_h + block.query * a.rel_pos_stride_n;
        T *const planes = of_worker(p, p.bias_planes, worker) + lanes<T>;
        const KeyRange range = key_range(a, first, keys);
        const int64_t begin = a.has_cls && block.query == 0 ? 1 : 0; // the cls query
        // All planes before all rows: a row then reads what has long left the store buffer.
        for (int64_t r = begin; r < block.rows; ++r)
            bias_plane(a.grid_k, range, rel_pos + r * a.rel_pos_stride_n, planes + r * p.plane_size);
        for (int64_t r = begin; r < block.rows; ++r)
            bias_row(a.grid_k, range, rel_pos + r * a.rel_pos_stride_n, planes + r * p.plane_size,
                     s + r * kScoreStride<T>);
        for (int64_t r = 0; r < R; ++r)
            if (r < begin || r >= block.rows)
                __builtin_memset(s + r * kScoreStride<T>, 0, size_t(keys) * sizeof(T));
        all_scores<S, R, true>(block.q_panel, k, p.pack_dim, T(a.scale), keys, s, tile_max);
    } else {
        all_scores<S, R, false>(block.q_panel, k, p.pack_dim, T(a.scale), keys, s, tile_max);
    }
    softmax_tile<S>(block, s, tile_max, keys, p.padded_dim);
    all_values<S, R>(s, v + first / kPair<S> * p.padded_dim, p.padded_dim, keys, block.sums, p.padded_dim);
}

template <class S> const S *q_row(const AttentionProblem &a, int64_t batch, int64_t head, int64_t query) {
    return static_cast<const S *>(a.q) + batch * a.q_stride_b + head * a.q_stride_h + query * a.q_stride_n;
}

template <class S> void begin_block(const Plan<accumulator<S>> &p, const Block<accumulator<S>> &block) {
    using T = accumulator<S>;
    pack_product_panel(q_row<S>(p.a, block.batch, block.head, block.query), p.a.q_stride_n, block.rows, p.a.head_dim,
                       T(p.a.scale), block.q_panel, kRowLanes<T>);
    for (int64_t r = 0; r < kRows; ++r) {
        block.row_max[r] = -__builtin_huge_valf();
        block.row_sum[r] = 0;
    }
    __builtin_memset(block.sums, 0, size_t(kRows * p.padded_dim) * sizeof(T));
}

template <class S> void end_block(const Plan<accumulator<S>> &p, const Block<accumulator<S>> &block) {
    using T = accumulator<S>;
    const AttentionProblem &a = p.a;
    T *const lse = static_cast<T *>(a.lse) + (block.batch * a.heads + block.head) * a.queries + block.query;
    for (int64_t r = 0; r < block.rows; ++r) {
        const int64_t query = block.query + r;
        const S *const q = q_row<S>(a, block.batch, block.head, query);
        S *const out =
            static_cast<S *>(a.out) + ((block.batch * a.queries + query) * a.heads + block.head) * a.head_dim;
        const bool residual =
            a.residual == Residual::all || (a.residual == Residual::no_cls && !(a.has_cls && query == 0));
        const T *const sums = block.sums + r * p.padded_dim;
        const T inverse = T(1) / block.row_sum[r];
        for (int64_t c = 0; c < a.head_dim; c += lanes<T>) {
            vec<T> row = load(sums + c) * inverse;
            if (residual)
                row += load_first(q + c, a.head_dim - c);
            store_first(out + c, row, a.head_dim - c);
        }
        lse[r] = block.row_max[r] + log(block.row_sum[r]);
    }
}

template <class S> void run_task(const Plan<accumulator<S>> &p, int64_t task, int64_t worker) {
    using T = accumulator<S>;
    const AttentionProblem &a = p.a;
    const int64_t head = task / p.tasks_per_head;
    const int64_t first = task % p.tasks_per_head * p.blocks_per_task;
    const int64_t count = min(p.blocks_per_task, p.blocks - first);
    for (int64_t tile = 0; tile < p.key_tiles; ++tile)
        for (int64_t i = 0; i < count; ++i) {
            const int64_t buffer = p.key_tiles == 1 ? 0 : i; // with one tile a block is done before the next begins
            Block<T> block;
            block.batch = head / a.heads;
            block.head = head % a.heads;
            block.query = (first + i) * kRows;
            block.rows = min(kRows, a.queries - block.query);
            block.q_panel = of_worker(p, p.q_panels, worker) + buffer * p.pack_dim * kRowLanes<T>;
            block.sums = of_worker(p, p.sums, worker) + buffer * kRows * p.padded_dim;
            block.row_max = of_worker(p, p.row_max, worker) + buffer * kRows;
            block.row_sum = of_worker(p, p.row_sum, worker) + buffer * kRows;
            if (tile == 0)
                begin_block<S>(p, block);
            if (block.rows > 2 * kRows / 3)
                run_tile<S, kRows>(p, block, tile, worker);
            else if (block.rows > kRows / 3)
                run_tile<S, 2 * kRows / 3>(p, block, tile, worker);
            else
                run_tile<S, kRows / 3>(p, block, tile, worker);
            if (tile == p.key_tiles - 1)
                end_block<S>(p, block);
        }
}

template <class S> void pack_keys(const Plan<accumulator<S>> &p, int64_t head, int64_t panel) {
    using T = accumulator<S>;
    const AttentionProblem &a = p.a;
    const int64_t b = head / a.heads, h = head % a.heads;
    const int64_t key = panel * kPanel<T>, count = min(kPanel<T>, a.keys - key);
    pack_product_panel(static_cast<const S *>(a.k) + b * a.k_stride_b + h * a.k_stride_h + key * a.k_stride_n,
                       a.k_stride_n, count, a.head_dim, T(1),
                       p.k_panels + (head * p.panels + panel) * p.pack_dim * kPanel<T>, kPanel<T>);
    if (!p.v_in_place)
        pack_product_rows(static_cast<const S *>(a.v) + b * a.v_stride_b + h * a.v_stride_h + key * a.v_stride_n,
                          a.v_stride_n, count, a.head_dim,
                          p.v_rows + (head * p.pack_keys + key / kPair<S>)*p.padded_dim, p.padded_dim);
}

template <class S> void run(const AttentionProblem &problem, void *scratch, const ParallelFor &parallel) {
    using T = accumulator<S>;
    Arena arena(scratch);
    const Plan<T> p = plan<S>(problem, parallel.threads, arena);
    const int64_t heads = problem.batch * problem.heads;
    const int64_t pack_workers =
        worker_count(p.workers, heads * p.panels, double(heads * problem.keys * problem.head_dim));
    for_each_task(parallel, pack_workers, heads * p.panels,
                  [&](int64_t, int64_t task) { pack_keys<S>(p, task / p.panels, task % p.panels); });
    for_each_task(parallel, p.workers, heads * p.tasks_per_head,
                  [&](int64_t worker, int64_t task) { run_task<S>(p, task, worker); });
}

} // namespace

int64_t pooling_attention_scratch(const AttentionProblem &problem, int64_t threads) {
    return with_storage(problem.dtype, [&](auto storage) {
        Arena arena(nullptr);
        plan<decltype(storage)>(problem, threads, arena);
        return arena.used();
    });
}

void pooling_attention(const AttentionProblem &problem, void *scratch, const ParallelFor &parallel) {
    with_storage(problem.dtype, [&](auto storage) { run<decltype(storage)>(problem, scratch, parallel); });
}

} // namespace mvit::cpu::MVIT_CPU_LEVEL_NAME
