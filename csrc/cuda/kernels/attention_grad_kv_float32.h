// Pooling attention of float32, backward: the gradients of k and v, by FMAs or in TF32 (float32_products.h). As
// attention_grad_kv, with tiles of 16 queries; the bias is the sum of three entries of a query's row in shared memory,
// and P is divided by its sum, as in attention_grad_q_float32.
#pragma once

#include "cuda/kernels/attention_block.h"
#include "cuda/kernels/float32_products.h"
#include "cuda/kernels/tile_copy.h"

namespace mvit::cuda {

template <int kDim, bool kTf32, bool kRelPos>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kBackwardThreads, kBackwardBlocks)
    attention_grad_kv_float32(const MVIT_GRID_CONSTANT AttentionBackwardWork w) {
    using Products = Float32Products<kDim, kTf32>;
    using Rows = Tile<2 * kDim>; // in 16-bit units
    constexpr int kTile = kBackwardTile, kThreads = kBackwardThreads, kStep = kFloat32Step;
    constexpr int kStages = float32_stages(kDim);
    constexpr int kScores = Products::kScores;
    constexpr Shared kOwnBytes = kTile * Rows::kRowBytes, kStepBytes = kStep * Rows::kRowBytes;
    constexpr Shared kRing = 2 * kOwnBytes;
    constexpr Shared kStage = 2 * kStepBytes + kFloat32Statistics * kStep * 4; // queries, output gradients, statistics
    constexpr Shared kScratch = kRing + kStages * kStage, kKeys = kScratch + kTile * kFloat32Pitch,
                     kBias = kKeys + 4 * kTile;

    const AttentionBackwardProblem &g = w.gradients;
    const AttentionProblem &p = g.forward;
    const int thread = thread_index(), warp = warp_index();
    const int64_t block = block_index(), first_key = block % w.plan.key_tiles * kTile;
    const int64_t heads = p.batch * p.heads, bh = block / w.plan.key_tiles % heads;
    const int64_t part = block / w.plan.key_tiles / heads;
    const int64_t head = bh % p.heads, batch = bh / p.heads;
    const int64_t first_tile = part * w.plan.part_tiles, first_query = first_tile * kTile;
    const int queries = int(min(p.queries - first_query, w.plan.part_tiles * kTile));
    const int keys = int(min(p.keys - first_key, kTile)), dim = int(p.head_dim);
    const auto at = [&](const void *base, int64_t b, int64_t h, int64_t n) {
        return static_cast<const float *>(base) + batch * b + head * h + n;
    };

    TileCopy<kTile, 2 * kDim, kThreads>(at(p.k, p.k_stride_b, p.k_stride_h, first_key * p.k_stride_n), 2 * p.k_stride_n)
        .start(0, keys, 2 * dim);
    TileCopy<kTile, 2 * kDim, kThreads>(at(p.v, p.v_stride_b, p.v_stride_h, first_key * p.v_stride_n), 2 * p.v_stride_n)
        .start(kOwnBytes, keys, 2 * dim);
    TileCopy<kStep, 2 * kDim, kThreads> q_copy(at(p.q, p.q_stride_b, p.q_stride_h, first_query * p.q_stride_n),
                                               2 * p.q_stride_n);
    TileCopy<kStep, 2 * kDim, kThreads> grad_copy(at(g.grad_out, g.stride_b, g.stride_h, first_query * g.stride_n),
                                                  2 * g.stride_n);
    const char *const statistics =
        w.scratch + w.plan.statistics + (bh * w.plan.query_tiles + first_tile) * kFloat32Statistics * kTile * 4;
    const int entries = kRelPos ? int(p.grid_k.t + p.grid_k.h + p.grid_k.w) : 0;
    const Shared pitch = Shared(4 * (entries + 1));
    const float *const rel_pos = kRelPos ? static_cast<const float *>(p.rel_pos) + batch * p.rel_pos_stride_b +
                                               head * p.rel_pos_stride_h + first_query * p.rel_pos_stride_n
                                         : nullptr;
    // The queries from `query` of this part on.
    const auto start = [&](int query, Shared stage, Shared bias) {
        const int count = queries - query < kStep ? queries - query : kStep;
        q_copy.start(stage, count, 2 * dim);
        grad_copy.start(stage + kStepBytes, count, 2 * dim);
        if (thread < kFloat32Statistics * kStep / 4)
            cp_async_16(stage + 2 * kStepBytes + Shared(16 * thread),
                        statistics + (query / kTile * kFloat32Statistics + thread / (kStep / 4)) * int64_t(kTile) * 4 +
                            query % kTile * 4 + thread % (kStep / 4) * 16,
                        true);
        cp_async_commit();
        if constexpr (kRelPos) {
            const int r = thread * kStep / kThreads;
            const bool biased = r < count && first_query + query + r >= (p.has_cls ? 1 : 0);
            for (int entry = thread % (kThreads / kStep); entry <= entries; entry += kThreads / kStep)
                store_shared(bias + Shared(r) * pitch + Shared(4 * entry),
                             biased && entry < entries
                                 ? load_global<float>(rel_pos + (query + r) * p.rel_pos_stride_n + entry)
                                 : 0.0f);
        }
    };
    Shared stage = 0, bias = kBias;
    if (queries > 0)
        start(0, kRing, bias);
    else
        cp_async_commit();
    if constexpr (kRelPos)
        if (thread < kTile)
            store_shared(kKeys + Shared(4 * thread), rel_pos_of_key(p, first_key + thread));
    cp_async_wait<0>();
    sync_block();
    const typename Products::template Operand<(kDim <= 96)> k(0); // with both in registers dim 96 would spill
    const typename Products::template Operand<(kDim <= 80)> v(kOwnBytes);

    const float scale = float(p.scale);
    const Shared scratch = kScratch + Shared(16 * warp * kFloat32Pitch);
    typename Products::Outputs dk = {}, dv = {};
    MVIT_NO_UNROLL
    for (int query = 0; query < queries; query += kStep) {
        const Shared q_rows = kRing + stage, grad_rows = q_rows + kStepBytes, numbers = q_rows + 2 * kStepBytes;
        cp_async_wait<0>();
        if constexpr (kTf32)
            q_copy.apply(q_rows, rounded_to_tf32), grad_copy.apply(grad_rows, rounded_to_tf32);
        sync_block(); // the tile is there, and all are done with the one before
        const auto start_next = [&] {
            if (query + kStep < queries)
                start(query + kStep, kRing + (kStages - 1) * kStage - stage, 2 * kBias + kStep * pitch - bias);
        };
        if constexpr (kStages == 2)
            start_next();
        if (16 * warp < keys) {
            float s[kScores] = {}, ds[kScores] = {};
            Products::scores(s, k, q_rows);
            Products::scores(ds, v, grad_rows);
            MVIT_UNROLL
            for (int i = 0; i < kScores; ++i) {
                const Shared of_query = numbers + Shared(4 * Products::column(i));
                s[i] *= scale;
                if constexpr (kRelPos) {
                    const uint32_t packed =
                        load_shared<uint32_t>(kKeys + Shared(4 * (16 * warp + Products::row(Products::slot(i)))));
                    const Shared of_row = bias + Shared(Products::column(i)) * pitch;
                    s[i] += load_shared<float>(of_row + (packed & 1023) * 4) +
                            (load_shared<float>(of_row + (packed >> 10 & 1023) * 4) +
                             load_shared<float>(of_row + (packed >> 20) * 4));
                }
                s[i] = fast_exp2((s[i] - load_shared<float>(of_query)) * kLog2E) *
                       load_shared<float>(of_query + 2 * 4 * kStep);
                ds[i] = s[i] * ((ds[i] - load_shared<float>(of_query + 4 * kStep)) +
                                load_shared<float>(of_query + 3 * 4 * kStep));
            }
            const auto add = [&](typename Products::Outputs &o, const float (&x)[kScores], Shared rows) {
                if constexpr (Products::kThroughShared) {
                    MVIT_UNROLL
                    for (int i = 0; i < kScores; ++i)
                        store_shared(scratch + Shared(Products::row(Products::slot(i)) * kFloat32Pitch +
                                                      4 * Products::column(i)),
                                     x[i]);
                    sync_warp();
                }
                Products::outputs(o, x, scratch, rows);
                if constexpr (Products::kThroughShared)
                    sync_warp();
            };
            add(dv, s, grad_rows);
            add(dk, ds, q_rows);
        }
        if constexpr (kStages == 1) {
            sync_block();
            start_next();
        }
        stage = (kStages - 1) * kStage - stage;
        bias = 2 * kBias + kStep * pitch - bias;
    }

    const auto write = [&](void *gradient, int64_t sums, float factor, const typename Products::Outputs &o) {
        if (!gradient)
            return;
        const bool whole = w.plan.parts == 1;
        float *const to = whole ? static_cast<float *>(gradient) + (bh * p.keys + first_key) * p.head_dim
                                : reinterpret_cast<float *>(w.scratch + sums) +
                                      ((part * heads + bh) * p.keys + first_key) * p.head_dim;
        Products::for_each(o, [&](int r, int channel, auto value) {
            if (16 * warp + r >= keys || channel >= dim)
                return;
            for (int c = 0; c < int(sizeof(value) / 4); ++c)
                value.value[c] *= whole ? factor : 1;
            store_global(to + int64_t(16 * warp + r) * dim + channel, value);
        });
    };
    write(g.k, w.plan.k_sums, scale, dk);
    write(g.v, w.plan.v_sums, 1, dv);
}

} // namespace mvit::cuda
