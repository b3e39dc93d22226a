// Pooling attention of float32, backward: the gradients of q and of the rel-pos rows, by FMAs or in TF32
// (float32_products.h). As attention_grad_q, with tiles of 16 keys; what differs:
//   the log-sum-exp's own rounding shows in float32: P sums to 1 + some eps, so all is divided by that sum
//   relative position   the bias is the sum of three entries in shared memory; of dS a lane adds one row's keys, in
//                       order, to two of their three entries, the lane 16 further on to the third
// Where keys are split, the parts' sums of the gradients are already divided by the sum of all P.
// The gradient of the log-sum-exp is added to dP - delta, not taken from delta, beside which it may be small.
// Written for attention_grad_kv_float32: lse, delta, the reciprocal of the sum of P and grad_lse of each query.
#pragma once

#include "cuda/kernels/attention_block.h"
#include "cuda/kernels/float32_products.h"
#include "cuda/kernels/tile_copy.h"

namespace mvit::cuda {

template <int kDim, bool kTf32, bool kRelPos, bool kSplit>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kBackwardThreads, kBackwardBlocks)
    attention_grad_q_float32(const MVIT_GRID_CONSTANT AttentionBackwardWork w) {
    using Products = Float32Products<kDim, kTf32>;
    using Rows = Tile<2 * kDim>; // in 16-bit units
    constexpr int kTile = kBackwardTile, kThreads = kBackwardThreads, kStep = kFloat32Step;
    constexpr int kStages = float32_stages(kDim);
    constexpr int kScores = Products::kScores, kSlots = Products::kSlots;
    constexpr Shared kOwnBytes = kTile * Rows::kRowBytes, kStepBytes = kStep * Rows::kRowBytes;
    constexpr Shared kRing = 2 * kOwnBytes, kStage = 2 * kStepBytes; // keys, then values
    constexpr Shared kScratch = kRing + kStages * kStage, kBias = kScratch + kTile * kFloat32Pitch;

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
    const bool for_kv = (g.k || g.v) && (!kSplit || part == 0), second_walk = g.q || g.rel_pos;
    if (kSplit && w.second && !(second_walk || for_kv))
        return;
    const auto at = [&](const void *base, int64_t b, int64_t h, int64_t n) {
        return static_cast<const float *>(base) + batch * b + head * h + n;
    };

    TileCopy<kTile, 2 * kDim, kThreads>(at(p.q, p.q_stride_b, p.q_stride_h, first_query * p.q_stride_n),
                                        2 * p.q_stride_n)
        .start(0, queries, 2 * dim);
    TileCopy<kTile, 2 * kDim, kThreads>(at(g.grad_out, g.stride_b, g.stride_h, first_query * g.stride_n),
                                        2 * g.stride_n)
        .start(kOwnBytes, queries, 2 * dim);
    TileCopy<kStep, 2 * kDim, kThreads> k_copy(at(p.k, p.k_stride_b, p.k_stride_h, first_key * p.k_stride_n),
                                               2 * p.k_stride_n);
    TileCopy<kStep, 2 * kDim, kThreads> v_copy(at(p.v, p.v_stride_b, p.v_stride_h, first_key * p.v_stride_n),
                                               2 * p.v_stride_n);
    k_copy.start(kRing, int(min(keys, kStep)), 2 * dim);
    v_copy.start(kRing + kStepBytes, int(min(keys, kStep)), 2 * dim);
    cp_async_commit();

    // The rows of a lane's scores in the tile. Queries that do not exist have P = 0; with an infinite score or without
    // any key P is NaN, as in the softmax.
    int row[kSlots];
    float lse[kSlots], grad_lse[kSlots] = {}, delta[kSlots] = {}, total[kSlots] = {};
    MVIT_UNROLL
    for (int i = 0; i < kSlots; ++i) {
        row[i] = 16 * warp + Products::row(i);
        lse[i] = -negative_infinity();
        if (row[i] < queries) {
            lse[i] = load_global<float>(static_cast<const float *>(p.lse) + bh * p.queries + first_query + row[i]);
            if (g.grad_lse)
                grad_lse[i] =
                    load_global<float>(static_cast<const float *>(g.grad_lse) + bh * p.queries + first_query + row[i]);
            if (lse[i] == negative_infinity() || lse[i] == -negative_infinity())
                lse[i] *= 0;
        }
    }

    const int entries = kRelPos ? int(p.grid_k.t + p.grid_k.h + p.grid_k.w) : 0;
    const Shared pitch = Shared(4 * (entries + 1)), sums = kBias + kTile * pitch, keys_at = sums + kTile * pitch;
    if constexpr (kRelPos) {
        const float *const rel_pos = static_cast<const float *>(p.rel_pos) + batch * p.rel_pos_stride_b +
                                     head * p.rel_pos_stride_h + first_query * p.rel_pos_stride_n;
        for (int r = warp; r < kTile; r += kThreads / kWarp) {
            const bool biased = r < queries && first_query + r >= (p.has_cls ? 1 : 0);
            for (int entry = lane; entry <= entries; entry += kWarp) {
                store_shared(kBias + Shared(r) * pitch + Shared(4 * entry),
                             biased && entry < entries ? load_global<float>(rel_pos + r * p.rel_pos_stride_n + entry)
                                                       : 0.0f);
                store_shared(sums + Shared(r) * pitch + Shared(4 * entry), 0.0f);
            }
        }
        if (thread < kStep)
            store_shared(keys_at + Shared(4 * thread), rel_pos_of_key(p, first_key + thread));
    }
    cp_async_wait<0>();
    sync_block();
    const typename Products::template Operand<(kDim <= 96)> q(0), grad(kOwnBytes);

    const float scale = float(p.scale);
    const Shared scratch = kScratch + Shared(16 * warp * kFloat32Pitch);
    typename Products::Outputs dq = {};
    Shared stage = 0, places = keys_at; // of the keys
    const auto walk = [&](auto second, bool again) {
        MVIT_NO_UNROLL
        for (int64_t key = 0; key < keys; key += kStep) {
            const int left = int(min(keys - key, kStep));
            const Shared k_rows = kRing + stage, v_rows = k_rows + kStepBytes,
                         next = kRing + (kStages - 1) * kStage - stage;
            cp_async_wait<0>();
            if constexpr (kTf32)
                k_copy.apply(k_rows, rounded_to_tf32), v_copy.apply(v_rows, rounded_to_tf32);
            sync_block(); // the tile is there, and all are done with the one before
            const auto start_next = [&] {
                const bool more = key + kStep < keys;
                if (more || again) {
                    if (!more)
                        k_copy.rewind(ceil_div(keys, kStep)), v_copy.rewind(ceil_div(keys, kStep));
                    const int64_t first = more ? key + kStep : 0;
                    k_copy.start(next, int(min(keys - first, kStep)), 2 * dim);
                    v_copy.start(next + kStepBytes, int(min(keys - first, kStep)), 2 * dim);
                    cp_async_commit();
                    if constexpr (kRelPos)
                        if (thread < kStep)
                            store_shared(2 * keys_at + 4 * kStep - places + Shared(4 * thread),
                                         rel_pos_of_key(p, first_key + first + thread));
                }
            };
            if constexpr (kStages == 2)
                start_next();

            float s[kScores] = {}, ds[kScores] = {};
            Products::scores(s, q, k_rows);
            Products::scores(ds, grad, v_rows);
            MVIT_UNROLL
            for (int i = 0; i < kScores; ++i) {
                const int column = Products::column(i), slot = Products::slot(i);
                s[i] *= scale;
                if constexpr (kRelPos) {
                    const uint32_t packed = load_shared<uint32_t>(places + Shared(4 * column));
                    const Shared of_row = kBias + Shared(row[slot]) * pitch;
                    s[i] += load_shared<float>(of_row + (packed & 1023) * 4) +
                            (load_shared<float>(of_row + (packed >> 10 & 1023) * 4) +
                             load_shared<float>(of_row + (packed >> 20) * 4));
                }
                // The difference first: near the largest score it is exact.
                s[i] = column < left ? fast_exp2((s[i] - lse[slot]) * kLog2E) : 0;
                if (second.value) {
                    ds[i] = s[i] * ((ds[i] - delta[slot]) + grad_lse[slot]);
                } else {
                    delta[slot] += s[i] * ds[i];
                    total[slot] += s[i];
                }
            }
            if constexpr (second.value) {
                if constexpr (kRelPos || Products::kThroughShared) {
                    MVIT_UNROLL
                    for (int i = 0; i < kScores; ++i)
                        store_shared(scratch + Shared(Products::row(Products::slot(i)) * kFloat32Pitch +
                                                      4 * Products::column(i)),
                                     ds[i]);
                    sync_warp();
                }
                Products::outputs(dq, ds, scratch, k_rows);
                if constexpr (kRelPos) {
                    const Shared of_row = sums + Shared(16 * warp + lane % 16) * pitch;
                    const int shift = lane < 16 ? 0 : 20;
                    MVIT_NO_UNROLL
                    for (int column = 0; column < left; column += 4) {
                        const Float4 x = load_shared<Float4>(scratch + Shared(lane % 16 * kFloat32Pitch + 4 * column));
                        const Vector16 packed = load_shared<Vector16>(places + Shared(4 * column));
                        MVIT_UNROLL
                        for (int c = 0; c < 4; ++c) {
                            if (int(packed.word[c] & 1023) == entries) // a key without a bias, or none at all
                                continue;
                            const Shared first = of_row + (packed.word[c] >> shift & 1023) * 4;
                            const Shared other =
                                of_row + (lane < 16 ? packed.word[c] >> 10 & 1023 : uint32_t(entries)) * 4;
                            store_shared(first, load_shared<float>(first) + x.value[c]);
                            store_shared(other, load_shared<float>(other) + x.value[c]);
                        }
                    }
                }
                if constexpr (kRelPos || Products::kThroughShared)
                    sync_warp();
            }
            if constexpr (kStages == 1) {
                sync_block();
                start_next();
            }
            stage = (kStages - 1) * kStage - stage;
            places = 2 * keys_at + 4 * kStep - places;
        }
    };
    if (!kSplit || !w.second)
        walk(Constant<false>{}, !kSplit && second_walk);

    float *const statistics = reinterpret_cast<float *>(w.scratch + w.plan.statistics) +
                              (bh * w.plan.query_tiles + tile) * kFloat32Statistics * kTile;
    const bool first_of_row = lane % Products::kLanesOfRow == 0;
    if (!kSplit || !w.second) {
        MVIT_UNROLL
        for (int i = 0; i < kSlots; ++i) {
            MVIT_UNROLL
            for (int mask = 1; mask < Products::kLanesOfRow; mask *= 2) {
                delta[i] += shuffle_xor(delta[i], mask);
                total[i] += shuffle_xor(total[i], mask);
            }
        }
    }
    if constexpr (kSplit) {
        const int64_t of_part = p.batch * p.heads * w.plan.query_tiles * kTile; // each a pair
        float *const sums_of_delta =
            reinterpret_cast<float *>(w.scratch + w.plan.delta_sums) + (bh * w.plan.query_tiles + tile) * kTile * 2;
        MVIT_UNROLL
        for (int i = 0; i < kSlots; ++i) {
            for (int64_t other = 0; w.second && other < w.plan.key_parts; ++other) {
                const Float2 sum = load_global<Float2>(sums_of_delta + 2 * (other * of_part + row[i]));
                delta[i] += sum.value[0];
                total[i] += sum.value[1];
            }
            if (!w.second && first_of_row)
                store_global(sums_of_delta + 2 * (part * of_part + row[i]), Float2{{delta[i], total[i]}});
        }
        if (!w.second)
            return;
    }
    MVIT_UNROLL
    for (int i = 0; i < kSlots; ++i) {
        const bool exists = row[i] < queries;
        total[i] = exists ? 1 / total[i] : 0; // the reciprocal from here on
        delta[i] = exists ? delta[i] * total[i] : 0;
        if (for_kv && first_of_row) {
            store_global(statistics + row[i], lse[i]);
            store_global(statistics + kTile + row[i], delta[i]);
            store_global(statistics + 2 * kTile + row[i], total[i]);
            store_global(statistics + 3 * kTile + row[i], grad_lse[i]);
        }
    }
    if (!second_walk)
        return;
    walk(Constant<true>{}, false);

    // A row's reciprocal, for its outputs and sums.
    sync_warp();
    MVIT_UNROLL
    for (int i = 0; i < kSlots; ++i)
        if (first_of_row)
            store_shared(scratch + Shared(Products::row(i) * kFloat32Pitch), total[i]);
    sync_warp();
    if constexpr (kRelPos) {
        if (g.rel_pos) {
            float *to = static_cast<float *>(g.rel_pos) + (bh * p.queries + first_query) * entries;
            if constexpr (kSplit)
                to = reinterpret_cast<float *>(w.scratch + w.plan.rel_pos_sums) +
                     ((part * p.batch * p.heads + bh) * p.queries + first_query) * entries;
            for (int r = 16 * warp; r < min(16 * warp + 16, queries); ++r) {
                const float inverse = load_shared<float>(scratch + Shared(r % 16 * kFloat32Pitch));
                const bool biased = first_query + r >= (p.has_cls ? 1 : 0);
                for (int entry = lane; entry < entries; entry += kWarp)
                    store_global(to + r * entries + entry,
                                 biased ? load_shared<float>(sums + Shared(r) * pitch + Shared(4 * entry)) * inverse
                                        : 0.0f);
            }
        }
    }
    if (!g.q)
        return;
    Products::for_each(dq, [&](int r, int channel, auto value) {
        const int of_tile = 16 * warp + r;
        if (of_tile >= queries || channel >= dim)
            return;
        const float factor = scale * load_shared<float>(scratch + Shared(r * kFloat32Pitch));
        const bool residual =
            !kSplit && (p.residual == Residual::all ||
                        (p.residual == Residual::no_cls && first_query + of_tile >= (p.has_cls ? 1 : 0)));
        decltype(value) added = {};
        if (residual)
            added =
                load_shared<decltype(value)>(kOwnBytes + Rows::offset(of_tile, channel / 4) + Shared(channel % 4 * 4));
        for (int c = 0; c < int(sizeof(value) / 4); ++c)
            added.value[c] += value.value[c] * factor;
        float *to = static_cast<float *>(g.q);
        if constexpr (kSplit)
            to = reinterpret_cast<float *>(w.scratch + w.plan.q_sums) +
                 part * p.batch * p.heads * p.queries * p.head_dim;
        store_global(to + (bh * p.queries + first_query + of_tile) * p.head_dim + channel, added);
    });
}

} // namespace mvit::cuda
