// Pooling attention, backward: the gradients of q and of the rel-pos rows. One block: 64 queries of one (batch, head),
// 16 for each of 4 warps; keys in tiles of 64, walked twice.
//   global -> shared    q and dO once, into the room of the second stage; k and v through a 2-stage cp.async ring
//   first walk          S = q k^T, P = exp2(S - lse), dP = dO v^T by mma.m16n8k16; delta = rowsum(P * dP)
//   second walk         the same, dP's accumulators beginning at -delta; dS = P * dP in the input dtype; dq += dS k
//   relative position   bias and the rows' gradients by products with a one-hot matrix (one_hot_products.h)
//   epilogue            scale * dq, + dO (residual pooling), rounded once, stored as rows of 16 bytes
//
// With few queries the keys are split: a block has a part of them, and each walk is a launch of its own. The first ends
// with the part's sum for delta; the second begins with all of them, added up in order, and ends with the part's sums
// of scale * dq and of the rows' gradients, which attention_grad_sum adds up.
//
// Also written, for attention_grad_kv: lse and delta - grad_lse of each query, and its row of bias as 16-bit numbers.
//
// Work per block: 10 * 64 * keys * D FLOP, with relative position 10 * 64 * keys * entries more.
#pragma once

#include "cuda/kernels/one_hot_products.h"
#include "cuda/kernels/tile_copy.h"
#include "cuda/kernels/tile_product.h"

namespace mvit::cuda {

template <class T, int kDim, bool kRelPos, bool kSplit>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kBackwardThreads, kBackwardBlocks)
    attention_grad_q(const MVIT_GRID_CONSTANT AttentionBackwardWork w) {
    using Rows = Tile<kDim>;
    constexpr int kTile = kBackwardTile, kThreads = kBackwardThreads;
    constexpr int kDimSteps = kDim / 16, kSteps = grad_q_step(kDim) / 16;
    constexpr Shared kTileBytes = kTile * Rows::kRowBytes;
    constexpr Shared kStage = 2 * kTileBytes; // keys, then values
    constexpr Shared kBias = 2 * kStage;

    const AttentionBackwardProblem &g = w.gradients;
    const AttentionProblem &p = g.forward;
    const int thread = thread_index(), lane = lane_index(), warp = warp_index();
    const int64_t block = block_index(), tile = block % w.plan.query_tiles;
    const int64_t part = kSplit ? block / w.plan.query_tiles % w.plan.key_parts : 0;
    const int64_t bh = kSplit ? block / w.plan.query_tiles / w.plan.key_parts : block / w.plan.query_tiles;
    const int64_t head = bh % p.heads, batch = bh / p.heads, first_query = tile * kTile;
    const int queries = int(min(p.queries - first_query, kTile)), dim = int(p.head_dim);
    const int64_t first_key = kSplit ? part * w.plan.key_part_tiles * kTile : 0;
    const int64_t keys = kSplit ? min(p.keys - first_key, w.plan.key_part_tiles * kTile) : p.keys;
    const bool for_kv = (g.k || g.v) && (!kSplit || part == 0);
    const bool needs_ds = g.q || g.k || g.rel_pos, second_walk = g.q || g.rel_pos;
    if (kSplit && w.second && !(needs_ds && (second_walk || for_kv)))
        return;
    const auto at = [&](const void *base, int64_t b, int64_t h) {
        return static_cast<const char *>(base) + 2 * (batch * b + head * h);
    };

    TileCopy<kTile, kDim, kThreads> k_copy(at(p.k, p.k_stride_b, p.k_stride_h) + 2 * first_key * p.k_stride_n,
                                           p.k_stride_n);
    TileCopy<kTile, kDim, kThreads> v_copy(at(p.v, p.v_stride_b, p.v_stride_h) + 2 * first_key * p.v_stride_n,
                                           p.v_stride_n);
    if (needs_ds) {
        TileCopy<kTile, kDim, kThreads>(at(p.q, p.q_stride_b, p.q_stride_h) + 2 * first_query * p.q_stride_n,
                                        p.q_stride_n)
            .start(kStage, queries, dim);
        TileCopy<kTile, kDim, kThreads>(at(g.grad_out, g.stride_b, g.stride_h) + 2 * first_query * g.stride_n,
                                        g.stride_n)
            .start(kStage + kTileBytes, queries, dim);
        k_copy.start(0, int(min(keys, kTile)), dim);
        v_copy.start(kTileBytes, int(min(keys, kTile)), dim);
        cp_async_commit();
    }

    // Rows lane / 4 and lane / 4 + 8 of the warp. Those that do not exist have P = 0. With an infinite score or without
    // any key P is NaN, as in the softmax.
    float *const statistics =
        reinterpret_cast<float *>(w.scratch + w.plan.statistics) + (bh * w.plan.query_tiles + tile) * 2 * kTile;
    float lse[2];
    MVIT_UNROLL
    for (int i = 0; i < 2; ++i) {
        const int row = 16 * warp + lane / 4 + 8 * i;
        lse[i] = -negative_infinity();
        if (row < queries) {
            lse[i] =
                load_global<float>(static_cast<const float *>(p.lse) + bh * p.queries + first_query + row) * kLog2E;
            if (lse[i] == negative_infinity() || lse[i] == -negative_infinity())
                lse[i] *= 0;
        }
        if (for_kv && lane % 4 == 0 && !(kSplit && w.second))
            store_global(statistics + row, lse[i]);
    }

    const int entries = kRelPos ? int(p.grid_k.t + p.grid_k.h + p.grid_k.w) : 0;
    const int depth = int(rel_pos_depth(entries));
    const Shared bias_row = Shared(bias_row_bytes(entries)), rest = Shared(2 * depth);
    const Shared key_row = Shared(one_hot_row_bytes(entries)), one_hot = kBias + kTile * bias_row;
    const Shared sums = one_hot + 2 * kTile * key_row + Shared(warp * 16 * depth * 4 + lane * 16);
    if constexpr (kRelPos) {
        const float *const rel_pos = static_cast<const float *>(p.rel_pos) + batch * p.rel_pos_stride_b +
                                     head * p.rel_pos_stride_h + first_query * p.rel_pos_stride_n;
        const int64_t stored_row = stored_bias_row_bytes(entries);
        char *const stored = w.scratch + w.plan.bias_rows + (bh * p.queries + first_query) * stored_row;
        for (int row = warp; row < kTile; row += kThreads / kWarp) {
            const bool biased = row < queries && first_query + row >= (p.has_cls ? 1 : 0);
            const float *const from = rel_pos + row * p.rel_pos_stride_n;
            for (int entry = 2 * lane; entry < depth; entry += 2 * kWarp) {
                uint32_t rounded, rests;
                split<T>(biased && entry < entries ? load_global<float>(from + entry) : 0.0f,
                         biased && entry + 1 < entries ? load_global<float>(from + entry + 1) : 0.0f, rounded, rests);
                store_shared(kBias + Shared(row) * bias_row + Shared(2 * entry), rounded);
                store_shared(kBias + Shared(row) * bias_row + rest + Shared(2 * entry), rests);
                if (for_kv && row < queries && 4 * entry < stored_row && !(kSplit && w.second)) {
                    store_global(stored + row * stored_row + 2 * entry, rounded);
                    store_global(stored + row * stored_row + stored_row / 2 + 2 * entry, rests);
                }
            }
        }
    }
    if (!needs_ds)
        return;

    // Threads below kTile own a row of each stage's one-hot matrix.
    OneHotRow<T> ones(one_hot + Shared(thread % kTile) * key_row, kRelPos && thread < kTile ? depth : 0);
    OneHotRow<T> next_ones(ones.row + kTile * key_row, kRelPos && thread < kTile ? depth : 0);
    KeyPlace place; // in the second tile, and on
    uint32_t first_entries = KeyPlace::kNone;
    if constexpr (kRelPos) {
        place.go_to(p, first_key + thread);
        first_entries = place.entries(p);
        place.go_to(p, first_key + kTile + thread);
        if (thread < kTile)
            ones.move_to(first_entries);
        for (int entry = 0; entry < depth; entry += 8)
            store_shared(sums + Shared(entry / 8) * kSumStep, Float4{});
    }

    uint32_t q[kDimSteps][4], grad[kDimSteps][4];
    const LaneRow<kDim> by_depth = rows_by_depth<kDim>(lane), by_column = rows_by_column<kDim>(lane);
    cp_async_wait<0>();
    sync_block();
    MVIT_UNROLL
    for (int d = 0; d < kDimSteps; ++d) {
        ldmatrix_x4(q[d], kStage + by_depth(d, warp));
        ldmatrix_x4(grad[d], kStage + kTileBytes + by_depth(d, warp));
    }

    const float scale = float(p.scale);
    const Shared my_bias = kBias + Shared(16 * warp + lane % 16) * bias_row + Shared(lane / 16 * 16);
    const Shared key_by_column = Shared(lane / 16 * 8 + lane % 8) * key_row + Shared(lane / 8 % 2 * 16);
    const Shared key_by_depth = Shared(lane % 16) * key_row + Shared(lane / 16 * 16);
    float dq[2 * kDimSteps][4] = {};
    float delta[2] = {0, 0};
    Shared stage = 0, keys_ones = one_hot;

    // Where a tile begins: it has landed for all, and all are done with the one before, whose room the copy of the
    // tile from `next` on takes.
    const auto begin = [&](int64_t next) {
        cp_async_wait<0>();
        sync_block();
        if (next == 0)
            k_copy.rewind(w.plan.key_tiles), v_copy.rewind(w.plan.key_tiles);
        if (next >= 0) {
            const int count = int(min(keys - next, kTile));
            k_copy.start(kStage - stage, count, dim);
            v_copy.start(kStage - stage + kTileBytes, count, dim);
            cp_async_commit();
            if constexpr (kRelPos) {
                if (thread < kTile)
                    next_ones.move_to(next == 0 ? first_entries : place.entries(p));
                place.next_tile(p);
            }
        }
    };
    const auto end = [&] {
        stage = kStage - stage;
        keys_ones = 2 * one_hot + kTile * key_row - keys_ones;
        const OneHotRow<T> same = ones;
        ones = next_ones;
        next_ones = same;
    };
    // Keys [16 * from, 16 * (from + kCount)) of the tile, of which `left` are there.
    const auto step = [&](auto second, auto count, auto masked, int from, int left) {
        constexpr int kCount = decltype(count)::value;
        const Shared k_rows = stage + Shared(from * 16 * Rows::kRowBytes), v_rows = k_rows + kTileBytes;
        [[maybe_unused]] const Shared key_rows = keys_ones + Shared(16 * from) * key_row;
        float s[2 * kCount][4] = {}, ds[2 * kCount][4];
        multiply_transposed<T, kDim, kCount>(s, q, k_rows, by_column);
        if constexpr (kRelPos) {
            MVIT_UNROLL
            for (int n = 0; n < 2 * kCount; ++n) {
                MVIT_UNROLL
                for (int i = 0; i < 4; ++i)
                    s[n][i] *= scale;
            }
            add_bias<kCount>(s, my_bias, rest, key_rows + key_by_column, key_row, depth);
        }
        MVIT_UNROLL
        for (int n = 0; n < 2 * kCount; ++n) {
            MVIT_UNROLL
            for (int i = 0; i < 4; ++i)
                ds[n][i] = second.value ? -delta[i / 2] : 0;
        }
        multiply_transposed<T, kDim, kCount>(ds, grad, v_rows, by_column);
        const float unit = kRelPos ? kLog2E : scale * kLog2E;
        MVIT_UNROLL
        for (int n = 0; n < 2 * kCount; ++n) {
            MVIT_UNROLL
            for (int i = 0; i < 4; ++i) {
                float probability = fast_exp2(s[n][i] * unit - lse[i / 2]);
                if (masked.value && 8 * n + 2 * (lane % 4) + i % 2 >= left - 16 * from)
                    probability = 0;
                if (second.value)
                    ds[n][i] *= probability;
                else
                    delta[i / 2] += probability * ds[n][i];
            }
        }
        if constexpr (second.value) {
            uint32_t operand[kCount][4];
            pack_operand<T, kCount>(operand, ds);
            multiply<T, kDim, kCount>(dq, operand, k_rows, by_depth);
            if constexpr (kRelPos)
                add_row_sums<T, kCount>(sums, operand, key_rows + key_by_depth, key_row, depth);
        }
    };
    const auto walk = [&](auto second, bool again) {
        int64_t key = 0;
        MVIT_NO_UNROLL
        for (; key + kTile <= keys; key += kTile) {
            const bool more = key + kTile < keys;
            begin(more ? key + kTile : again ? 0 : -1);
            MVIT_NO_UNROLL
            for (int from = 0; from < kTile / 16; from += kSteps)
                step(second, Number<kSteps>{}, Number<0>{}, from, kTile);
            end();
        }
        if (key < keys) {
            begin(again ? 0 : -1);
            const int left = int(keys - key);
            MVIT_NO_UNROLL
            for (int from = 0; 16 * from < left; ++from)
                step(second, Number<1>{}, Number<1>{}, from, left);
            end();
        }
    };
    if (!kSplit || !w.second) {
        walk(Number<0>{}, !kSplit && second_walk);
        MVIT_UNROLL
        for (int i = 0; i < 2; ++i) {
            delta[i] += shuffle_xor(delta[i], 1);
            delta[i] += shuffle_xor(delta[i], 2);
        }
    }
    if constexpr (kSplit) {
        const int64_t of_part = p.batch * p.heads * w.plan.query_tiles * kTile;
        float *const sums_of_delta = reinterpret_cast<float *>(w.scratch + w.plan.delta_sums) +
                                     (bh * w.plan.query_tiles + tile) * kTile + 16 * warp + lane / 4;
        MVIT_UNROLL
        for (int i = 0; i < 2; ++i) {
            if (w.second)
                for (int64_t other = 0; other < w.plan.key_parts; ++other)
                    delta[i] += load_global<float>(sums_of_delta + other * of_part + 8 * i);
            else if (lane % 4 == 0)
                store_global(sums_of_delta + part * of_part + 8 * i, delta[i]);
        }
        if (!w.second)
            return;
    }
    MVIT_UNROLL
    for (int i = 0; i < 2; ++i) {
        const int row = 16 * warp + lane / 4 + 8 * i;
        if (g.grad_lse && row < queries)
            delta[i] -= load_global<float>(static_cast<const float *>(g.grad_lse) + bh * p.queries + first_query + row);
        if (for_kv && lane % 4 == 0)
            store_global(statistics + kTile + row, delta[i]);
    }
    if (!second_walk)
        return;
    if constexpr (kRelPos && !kSplit)
        place.go_to(p, kTile + thread);
    walk(Number<1>{}, false);

    if constexpr (kRelPos) {
        if (g.rel_pos) {
            float *to = static_cast<float *>(g.rel_pos) + (bh * p.queries + first_query) * entries;
            if constexpr (kSplit)
                to = reinterpret_cast<float *>(w.scratch + w.plan.rel_pos_sums) +
                     ((part * p.batch * p.heads + bh) * p.queries + first_query) * entries;
            for (int entry = 2 * (lane % 4); entry < entries; entry += 8) {
                const Float4 sum = load_shared<Float4>(sums + Shared(entry / 8) * kSumStep);
                MVIT_UNROLL
                for (int i = 0; i < 4; ++i) {
                    const int row = 16 * warp + lane / 4 + i / 2 * 8, column = entry + i % 2;
                    if (row < queries && column < entries)
                        store_global(to + row * entries + column,
                                     first_query + row >= (p.has_cls ? 1 : 0) ? sum.value[i] : 0.0f);
                }
            }
        }
    }
    if (!g.q)
        return;
    if constexpr (kSplit) {
        float *const to = reinterpret_cast<float *>(w.scratch + w.plan.q_sums) +
                          ((part * p.batch * p.heads + bh) * p.queries + first_query) * p.head_dim;
        MVIT_UNROLL
        for (int i = 0; i < 2; ++i) {
            const int row = 16 * warp + lane / 4 + 8 * i;
            MVIT_UNROLL
            for (int d = 0; d < 2 * kDimSteps; ++d)
                if (row < queries && 8 * d < dim)
                    store_global(to + int64_t(row) * dim + 8 * d + 2 * (lane % 4),
                                 Float2{{dq[d][2 * i] * scale, dq[d][2 * i + 1] * scale}});
        }
    } else {
        // Each warp turns its 16 rows round through the stage that is free.
        MVIT_UNROLL
        for (int i = 0; i < 2; ++i) {
            const int row = 16 * warp + lane / 4 + 8 * i;
            const bool residual = p.residual == Residual::all ||
                                  (p.residual == Residual::no_cls && first_query + row >= (p.has_cls ? 1 : 0));
            MVIT_UNROLL
            for (int d = 0; d < 2 * kDimSteps; ++d) {
                float low, high;
                unpack<T>(residual ? grad[d / 2][d % 2 * 2 + i] : 0, low, high);
                store_shared(stage + Rows::offset(row, d) + Shared(4 * (lane % 4)),
                             pack<T>(dq[d][2 * i] * scale + low, dq[d][2 * i + 1] * scale + high));
            }
        }
        sync_warp();
        store_rows<kDim>(static_cast<char *>(g.q) + 2 * (bh * p.queries + first_query) * p.head_dim, stage, queries,
                         dim);
    }
}

} // namespace mvit::cuda
