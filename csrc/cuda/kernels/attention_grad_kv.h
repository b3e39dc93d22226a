// Pooling attention, backward: the gradients of k and v. One block: 64 keys of one (batch, head), 16 for each of 4
// warps, and a part of the queries, in tiles of 64. All is computed transposed, so that P and dS stay in registers:
//   global -> shared    k and v once, into the room of the second stage; q and dO through a 2-stage cp.async ring,
//                       with what attention_grad_q has left of each query: lse, delta and its row of bias
//   shared -> register  S^T = k q^T, P^T = exp2(S^T - lse), dP^T = v dO^T - delta; dv += P^T dO; dk += dS^T q
//   epilogue            one part: scale * dk and dv, rounded once, as rows of 16 bytes; else float32 sums of the part
// A query that does not exist has lse = inf, so P = 0. Work per block: 8 * 64 * queries * D FLOP, with relative
// position 4 * 64 * queries * entries more; traffic (2 * D + entries) elements in for each query.
#pragma once

#include "cuda/kernels/one_hot_products.h"
#include "cuda/kernels/tile_copy.h"
#include "cuda/kernels/tile_product.h"

namespace mvit::cuda {

template <class T, int kDim, bool kRelPos>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(kBackwardThreads, kBackwardBlocks)
    attention_grad_kv(const MVIT_GRID_CONSTANT AttentionBackwardWork w) {
    using Rows = Tile<kDim>;
    constexpr int kTile = kBackwardTile, kThreads = kBackwardThreads;
    constexpr int kDimSteps = kDim / 16, kSteps = grad_kv_step(kDim) / 16;
    constexpr Shared kTileBytes = kTile * Rows::kRowBytes;
    constexpr Shared kStage = 2 * kTileBytes + 2 * kTile * 4; // queries, output gradients, lse, delta
    constexpr Shared kOneHot = 2 * kStage;

    const AttentionBackwardProblem &g = w.gradients;
    const AttentionProblem &p = g.forward;
    const int thread = thread_index(), lane = lane_index(), warp = warp_index();
    const int64_t block = block_index(), first_key = block % w.plan.key_tiles * kTile;
    const int64_t heads = p.batch * p.heads, bh = block / w.plan.key_tiles % heads;
    const int64_t part = block / w.plan.key_tiles / heads;
    const int64_t head = bh % p.heads, batch = bh / p.heads;
    const int64_t first_tile = part * w.plan.part_tiles;
    const int tiles = int(min(w.plan.query_tiles - first_tile, w.plan.part_tiles));
    const int keys = int(min(p.keys - first_key, kTile)), dim = int(p.head_dim);
    const auto at = [&](const void *base, int64_t b, int64_t h, int64_t token, int64_t n) {
        return static_cast<const char *>(base) + 2 * (batch * b + head * h + token * n);
    };

    const int64_t last_tile = first_tile + tiles - 1, query = last_tile * kTile;
    // Steps of the copies that the compiler would make multiples of, to keep, are more registers than there are.
    const int64_t q_stride = opaque(p.q_stride_n), grad_stride = opaque(g.stride_n);
    TileCopy<kTile, kDim, kThreads> q_copy(at(p.q, p.q_stride_b, p.q_stride_h, query, q_stride), q_stride);
    TileCopy<kTile, kDim, kThreads> grad_copy(at(g.grad_out, g.stride_b, g.stride_h, query, grad_stride), grad_stride);
    const char *statistics = w.scratch + w.plan.statistics + (bh * w.plan.query_tiles + last_tile) * (2 * kTile * 4);
    const int entries = kRelPos ? int(p.grid_k.t + p.grid_k.h + p.grid_k.w) : 0;
    const int depth = int(rel_pos_depth(entries));
    const Shared key_row = Shared(one_hot_row_bytes(entries)), bias_row = Shared(bias_row_bytes(entries));
    const Shared rest = Shared(2 * depth), bias = kOneHot + kTile * key_row;
    // Two threads copy a query's row of bias: what rounding left, and the rest.
    const int64_t stored_row = stored_bias_row_bytes(entries);
    const char *stored = w.scratch + w.plan.bias_rows + (bh * p.queries + query + thread / 2) * stored_row +
                         thread % 2 * (stored_row / 2);

    Shared stage = 0, bias_rows = bias;
    // From the last tile to the first: then only the one that is copied ahead of the loop may be short.
    const auto start = [&](auto is_short, Shared to, Shared bias_to) {
        int count = kTile;
        if constexpr (is_short.value) {
            count = int(min(p.queries - query, kTile));
            q_copy.start(to, count, dim);
            grad_copy.start(to + kTileBytes, count, dim);
        } else {
            q_copy.start_whole(to, dim);
            grad_copy.start_whole(to + kTileBytes, dim);
        }
        q_copy.rewind(2);
        grad_copy.rewind(2);
        if (thread < 2 * kTile * 4 / 16)
            cp_async_16(to + 2 * kTileBytes + Shared(16 * thread), statistics + 16 * thread, true);
        statistics -= 2 * kTile * 4;
        if constexpr (kRelPos)
            for (int chunk = 0; chunk < depth / 8; ++chunk)
                cp_async_16(bias_to + Shared(thread / 2) * bias_row + Shared(thread % 2) * rest + Shared(16 * chunk),
                            stored + 16 * chunk, thread / 2 < count && 16 * chunk < stored_row / 2);
        cp_async_commit();
        stored -= kTile * stored_row;
    };

    TileCopy<kTile, kDim, kThreads>(at(p.k, p.k_stride_b, p.k_stride_h, first_key, p.k_stride_n), p.k_stride_n)
        .start(kStage, keys, dim);
    TileCopy<kTile, kDim, kThreads>(at(p.v, p.v_stride_b, p.v_stride_h, first_key, p.v_stride_n), p.v_stride_n)
        .start(kStage + kTileBytes, keys, dim);
    if (tiles > 0)
        start(Number<1>{}, 0, bias);
    else
        cp_async_commit();
    if constexpr (kRelPos)
        if (thread < kTile) {
            KeyPlace place;
            place.go_to(p, first_key + thread);
            OneHotRow<T>(kOneHot + Shared(thread) * key_row, depth).move_to(place.entries(p));
        }

    uint32_t k[kDimSteps][4], v[kDimSteps][4];
    const Shared depth_row = rows_by_depth<kDim>(lane).at[0], column_row = rows_by_column<kDim>(lane).at[0];
    cp_async_wait<0>();
    sync_block();
    MVIT_UNROLL
    for (int d = 0; d < kDimSteps; ++d) {
        const LaneRow<kDim> rows(kStage + depth_row);
        ldmatrix_x4(k[d], rows(d, warp));
        ldmatrix_x4(v[d], kTileBytes + rows(d, warp));
    }

    const float scale = float(p.scale), unit = kRelPos ? kLog2E : scale * kLog2E;
    const Shared my_keys = kOneHot + Shared(16 * warp + lane % 16) * key_row + Shared(lane / 16 * 16);
    const Shared bias_by_column = Shared(lane / 16 * 8 + lane % 8) * bias_row + Shared(lane / 8 % 2 * 16);
    float dk[2 * kDimSteps][4] = {}, dv[2 * kDimSteps][4] = {};
    MVIT_NO_UNROLL
    for (int tile = 0; tile < tiles; ++tile) {
        cp_async_wait<0>();
        sync_block();
        if (tile + 1 < tiles)
            start(Number<0>{}, kStage - stage, 2 * bias + kTile * bias_row - bias_rows);
        if (16 * warp < keys) {
            MVIT_NO_UNROLL
            for (int from = 0; from < kTile / 16; from += kSteps) {
                const Shared q_rows = stage + Shared(from * 16 * Rows::kRowBytes);
                const LaneRow<kDim> by_depth(q_rows + depth_row), by_column(q_rows + column_row);
                const Shared numbers = stage + 2 * kTileBytes + Shared((16 * from + 2 * (lane % 4)) * 4);
                float s[2 * kSteps][4] = {}, ds[2 * kSteps][4];
                multiply_transposed<T, kDim, kSteps>(s, k, 0, by_column);
                if constexpr (kRelPos) {
                    MVIT_UNROLL
                    for (int n = 0; n < 2 * kSteps; ++n) {
                        MVIT_UNROLL
                        for (int i = 0; i < 4; ++i)
                            s[n][i] *= scale;
                    }
                    add_bias_of_keys<kSteps>(s, my_keys, bias_rows + Shared(16 * from) * bias_row + bias_by_column,
                                             rest, bias_row, depth);
                }
                MVIT_UNROLL
                for (int n = 0; n < 2 * kSteps; ++n) {
                    const Float2 delta = load_shared<Float2>(numbers + Shared((kTile + 8 * n) * 4));
                    MVIT_UNROLL
                    for (int i = 0; i < 4; ++i)
                        ds[n][i] = -delta.value[i % 2];
                }
                multiply_transposed<T, kDim, kSteps>(ds, v, kTileBytes, by_column);
                MVIT_UNROLL
                for (int n = 0; n < 2 * kSteps; ++n) {
                    const Float2 lse = load_shared<Float2>(numbers + Shared(8 * n * 4));
                    MVIT_UNROLL
                    for (int i = 0; i < 4; ++i) {
                        s[n][i] = fast_exp2(s[n][i] * unit - lse.value[i % 2]);
                        ds[n][i] *= s[n][i];
                    }
                }
                uint32_t operand[kSteps][4];
                pack_operand<T, kSteps>(operand, s);
                multiply<T, kDim, kSteps>(dv, operand, kTileBytes, by_depth);
                pack_operand<T, kSteps>(operand, ds);
                multiply<T, kDim, kSteps>(dk, operand, 0, by_depth);
            }
        }
        stage = kStage - stage;
        bias_rows = 2 * bias + kTile * bias_row - bias_rows;
    }

    if (w.plan.parts > 1) {
        const auto write = [&](int64_t sums, const float (&d)[2 *kDimSteps][4]) {
            char *const to = w.scratch + sums + ((part * heads + bh) * p.keys + first_key) * p.head_dim * 4;
            MVIT_UNROLL
            for (int i = 0; i < 2; ++i) {
                const int row = 16 * warp + lane / 4 + 8 * i;
                MVIT_UNROLL
                for (int n = 0; n < 2 * kDimSteps; ++n)
                    if (row < keys && 8 * n < dim)
                        store_global(to + (int64_t(row) * dim + 8 * n + 2 * (lane % 4)) * 4,
                                     Float2{{d[n][2 * i], d[n][2 * i + 1]}});
            }
        };
        if (g.k)
            write(w.plan.k_sums, dk);
        if (g.v)
            write(w.plan.v_sums, dv);
        return;
    }
    // Each warp turns its 16 rows round through the stage that is free.
    const auto write = [&](void *gradient, const float (&d)[2 *kDimSteps][4], float factor, Shared to) {
        if (!gradient)
            return;
        MVIT_UNROLL
        for (int i = 0; i < 2; ++i) {
            MVIT_UNROLL
            for (int n = 0; n < 2 * kDimSteps; ++n)
                store_shared(to + Rows::offset(16 * warp + lane / 4 + 8 * i, n) + Shared(4 * (lane % 4)),
                             pack<T>(d[n][2 * i] * factor, d[n][2 * i + 1] * factor));
        }
        sync_warp();
        store_rows<kDim>(static_cast<char *>(gradient) + 2 * (bh * p.keys + first_key) * p.head_dim, to, keys, dim);
    };
    write(g.k, dk, scale, stage);
    write(g.v, dv, 1, stage + kTileBytes);
}

} // namespace mvit::cuda
