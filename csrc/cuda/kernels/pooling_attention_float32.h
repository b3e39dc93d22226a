// Pooling attention of float32, forward, in two ways (float32_products.h): FMAs, as IEEE has it, with no operand
// rounded; and tensor cores in TF32. One block: 64 queries of one (batch, head), 16 for each of 4 warps; keys in tiles
// of 32.
//   global -> shared    q once; k and v in turn by cp.async: one comes while the other is used. For TF32 each thread
//                       rounds, in place, what it has copied itself
//   shared -> register  S = q k^T. FMA: a thread has 4 rows and 4 keys, 64 FMA for 8 loads of 16 bytes, each of which
//                       four or eight lanes share. TF32: q stays in registers
//   register            + relative position, running max and sum (base 2), O += P v; P of the FMAs goes through shared
//                       memory inside the warp
//   epilogue            / sum, + q (residual pooling), stored as (B, Nq, H, D), or the split's part
// Two barriers per tile, behind which k or v has landed and the other's room is free. Work per block: 4 * 64 * Nk * D
// FLOP; traffic (64 + 2 * Nk) * D numbers in, 64 * D out.
#pragma once

#include "cuda/kernels/attention_block.h"
#include "cuda/kernels/float32_products.h"
#include "cuda/kernels/tile_copy.h"

namespace mvit::cuda {

template <bool kTf32> static constexpr AttentionTile float32_tile(int dim) {
    return attention_tile(kTf32 ? AttentionKernel::tf32 : AttentionKernel::float32, dim, AttentionBias::gather);
}

template <int kDim, bool kTf32, bool kRelPos>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(float32_tile<kTf32>(kDim).threads, float32_tile<kTf32>(kDim).blocks)
    pooling_attention_float32(const MVIT_GRID_CONSTANT AttentionForward f) {
    constexpr int kRows = float32_tile<kTf32>(kDim).rows, kKeys = float32_tile<kTf32>(kDim).keys;
    constexpr int kThreads = float32_tile<kTf32>(kDim).threads;
    using Products = Float32Products<kDim, kTf32, kKeys>;
    constexpr int kScores = Products::kScores, kSlots = Products::kSlots;
    using Rows = Tile<2 * kDim>; // in 16-bit units
    constexpr Shared kK = kRows * Rows::kRowBytes, kV = kK + kKeys * Rows::kRowBytes;
    constexpr Shared kProbability = kV + kKeys * Rows::kRowBytes;
    constexpr Shared kBias = kProbability + (Products::kThroughShared ? kRows * Products::kPitch : 0);
    static_assert(kRows == 16 * kThreads / kWarp, "");

    const AttentionProblem &p = f.p;
    const AttentionBlock block(f, kRows, kKeys);
    const int first_row = 16 * warp_index(), dim = int(p.head_dim);
    const auto at = [&](const void *base, int64_t b, int64_t h, int64_t n) {
        return static_cast<const float *>(base) + block.batch * b + block.head * h + n;
    };
    const float *const k = at(p.k, p.k_stride_b, p.k_stride_h, block.first_key * p.k_stride_n);
    const float *const v = at(p.v, p.v_stride_b, p.v_stride_h, block.first_key * p.v_stride_n);
    TileCopy<kKeys, 2 * kDim, kThreads> k_copy(k, 2 * p.k_stride_n), v_copy(v, 2 * p.v_stride_n);
    TileCopy<kRows, 2 * kDim, kThreads>(at(p.q, p.q_stride_b, p.q_stride_h, block.first_query * p.q_stride_n),
                                        2 * p.q_stride_n)
        .start(0, block.queries, 2 * dim);
    cp_async_commit();
    k_copy.start(kK, int(min(block.keys, kKeys)), 2 * dim);
    cp_async_commit();

    const float unit = score_scale(p) * kLog2E;
    const BiasRows bias(p, kBias, kRows);
    if constexpr (kRelPos) {
        bias.load(p, block, kRows, kThreads);
        bias.first_tile(p, block.first_key, kKeys);
    }
    cp_async_wait<1>();
    sync_block();
    const typename Products::template Operand<true> q(0);

    typename Products::Outputs o = {};
    float top[kSlots], sum[kSlots] = {};
    MVIT_UNROLL
    for (int slot = 0; slot < kSlots; ++slot)
        top[slot] = negative_infinity();
    MVIT_NO_UNROLL
    for (int64_t done = 0; done < block.keys; done += kKeys) {
        const int left = int(min(block.keys - done, 2 * kKeys));
        cp_async_wait<0>();
        if constexpr (kTf32)
            k_copy.apply(kK, rounded_to_tf32);
        sync_block(); // k is there; all are done with v
        v_copy.start(kV, int(min(left, kKeys)), 2 * dim);
        cp_async_commit();

        float s[kScores] = {};
        Products::scores(s, q, kK);
        if (p.scale < 0) {
            MVIT_UNROLL
            for (int i = 0; i < kScores; ++i)
                s[i] = -s[i];
        }
        MVIT_UNROLL
        for (int i = 0; i < kScores; ++i) {
            const int key = Products::column(i);
            if constexpr (kRelPos)
                s[i] += bias.bias(first_row + Products::row(Products::slot(i)),
                                  load_shared<uint32_t>(bias.keys + Shared(4 * key)));
            if (key >= left)
                s[i] = negative_infinity();
        }

        float from[kSlots], shrink[kSlots];
        bool raised = false;
        MVIT_UNROLL
        for (int slot = 0; slot < kSlots; ++slot) {
            float most = top[slot];
            MVIT_UNROLL
            for (int i = 0; i < kScores; ++i)
                if (Products::slot(i) == slot)
                    most = maximum(most, s[i]);
            MVIT_UNROLL
            for (int mask = 1; mask < Products::kLanesOfRow; mask *= 2)
                most = maximum(most, shuffle_xor(most, mask));
            raised = raised || most != top[slot];
            // A row of -inf alone so far: 2^(-inf - 0) is 0, 2^(-inf + inf) would be NaN.
            from[slot] = most == negative_infinity() ? 0 : most;
            shrink[slot] = fast_exp2((top[slot] - from[slot]) * unit);
            top[slot] = most;
        }
        if (any(raised)) {
            MVIT_UNROLL
            for (int slot = 0; slot < kSlots; ++slot)
                sum[slot] *= shrink[slot];
            Products::scale(o, shrink);
        }
        MVIT_UNROLL
        for (int i = 0; i < kScores; ++i) {
            const int slot = Products::slot(i);
            // The difference first: near the largest score it is exact. TF32 has no use for that.
            s[i] = fast_exp2(kTf32 ? s[i] * unit - from[slot] * unit : (s[i] - from[slot]) * unit);
            sum[slot] += s[i];
            if constexpr (Products::kThroughShared)
                store_shared(kProbability +
                                 Shared((first_row + Products::row(slot)) * Products::kPitch + 4 * Products::column(i)),
                             s[i]);
        }

        cp_async_wait<0>();
        if constexpr (kTf32)
            v_copy.apply(kV, rounded_to_tf32);
        sync_block(); // v is there; all are done with k
        if (left > kKeys) {
            k_copy.start(kK, left - kKeys, 2 * dim);
            cp_async_commit();
            if constexpr (kRelPos)
                bias.first_tile(p, block.first_key + done + kKeys, kKeys);
        }
        Products::outputs(o, s, kProbability + Shared(first_row * Products::kPitch), kV);
    }

    const bool is_part = f.splits > 1;
    float factor[kSlots];
    MVIT_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) {
        MVIT_UNROLL
        for (int mask = 1; mask < Products::kLanesOfRow; mask *= 2)
            sum[slot] += shuffle_xor(sum[slot], mask);
        const int row = first_row + Products::row(slot);
        if (row < block.queries && lane_index() % Products::kLanesOfRow == 0)
            store_row_sum(f, block, row, top[slot] * score_scale(p), sum[slot]);
        factor[slot] = is_part ? 1 : 1 / sum[slot];
    }
    Products::scale(o, factor);
    Products::for_each(o, [&](int of_warp, int channel, auto value) {
        const int row = first_row + of_warp;
        if (row >= block.queries || channel >= dim)
            return;
        if (!is_part && block.has_residual(p, row)) {
            const auto residual =
                load_shared<decltype(value)>(Rows::offset(row, channel / 4) + Shared(channel % 4 * 4));
            MVIT_UNROLL
            for (int c = 0; c < int(sizeof(value) / 4); ++c)
                value.value[c] += residual.value[c];
        }
        float *const to =
            is_part ? part_of_row(f, block, row) : static_cast<float *>(p.out) + output_row(p, block, row);
        store_global(to + channel, value);
    });
}

} // namespace mvit::cuda
