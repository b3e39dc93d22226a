// Pooling attention in float32 as IEEE has it, forward: FMAs of the CUDA cores, no operand is rounded.
// One block: 64 queries of one (batch, head), 16 for each of 4 warps; keys in tiles of 32.
//   global -> shared    q once; k and v in turn by cp.async: one comes while the other is used
//   shared -> register  a thread has 4 rows (one in four) and 4 keys (one in eight): 16 scores, 64 FMA for 8 loads of
//                       16 bytes, each of which four or eight lanes share
//   register            + relative position, running max and sum (base 2), P through shared memory inside the warp,
//                       O += P v, a thread having 4 rows and an eighth of the channels
//   epilogue            / sum, + q (residual pooling), stored as (B, Nq, H, D), or the split's part
// Two barriers per tile, behind which k or v has landed and the other's room is free. Work per block: 4 * 64 * Nk * D
// FLOP; traffic (64 + 2 * Nk) * D numbers in, 64 * D out.
#pragma once

#include "cuda/kernels/attention_block.h"
#include "cuda/kernels/tile_copy.h"

namespace mvit::cuda {

template <int kDim, bool kRelPos>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(attention_tile(AttentionKernel::float32, kDim, AttentionBias::gather).threads,
                                    attention_tile(AttentionKernel::float32, kDim, AttentionBias::gather).blocks)
    pooling_attention_float32(const MVIT_GRID_CONSTANT AttentionForward f) {
    constexpr int kRows = attention_tile(AttentionKernel::float32, kDim, AttentionBias::gather).rows;
    constexpr int kKeys = attention_tile(AttentionKernel::float32, kDim, AttentionBias::gather).keys;
    constexpr int kThreads = attention_tile(AttentionKernel::float32, kDim, AttentionBias::gather).threads;
    using Rows = Tile<2 * kDim>; // in 16-bit units
    constexpr Shared kK = kRows * Rows::kRowBytes, kV = kK + kKeys * Rows::kRowBytes;
    constexpr Shared kProbability = kV + kKeys * Rows::kRowBytes;
    constexpr int kPitch = 4 * attention_probability_pitch(kKeys);
    constexpr Shared kBias = kProbability + kRows * kPitch;
    constexpr int kGroup = Rows::kGroup;         // chunks of 4 channels over which the swizzle repeats
    constexpr int kOwn = kDim / 8;               // channels of a thread
    constexpr int kWide = kOwn % 4 == 0 ? 4 : 2; // of them side by side
    using Wide = std::conditional_t<kWide == 4, Float4, Float2>;
    static_assert(kRows == 16 * kThreads / kWarp && kKeys == 32, "");

    const AttentionProblem &p = f.p;
    const AttentionBlock block(f, kRows, kKeys);
    const int lane = lane_index(), first_row = 16 * warp_index() + lane / 8, column = lane % 8;
    const int dim = int(p.head_dim);
    const auto at = [&](const void *base, int64_t b, int64_t h, int64_t n) {
        return static_cast<const float *>(base) + block.batch * b + block.head * h + n;
    };
    const float *const k = at(p.k, p.k_stride_b, p.k_stride_h, block.first_key * p.k_stride_n);
    const float *const v = at(p.v, p.v_stride_b, p.v_stride_h, block.first_key * p.v_stride_n);
    TileCopy<kKeys, 2 * kDim, kThreads> k_copy(k, 2 * p.k_stride_n), v_copy(v, 2 * p.v_stride_n);
    TileCopy<kRows, 2 * kDim, kThreads>(at(p.q, p.q_stride_b, p.q_stride_h, block.first_query * p.q_stride_n),
                                        2 * p.q_stride_n)
        .start(0, block.queries, 2 * dim);
    k_copy.start(kK, int(min(block.keys, kKeys)), 2 * dim);
    cp_async_commit();

    const float unit = score_scale(p) * kLog2E, sign = p.scale < 0 ? -1.0f : 1.0f;
    const BiasRows bias(p, kBias, kRows);
    if constexpr (kRelPos) {
        bias.load(p, block, kRows, kThreads);
        bias.first_tile(p, block.first_key, kKeys);
    }

    float o[4][kOwn] = {}, top[4], sum[4] = {};
    MVIT_UNROLL
    for (int i = 0; i < 4; ++i)
        top[i] = negative_infinity();
    MVIT_NO_UNROLL
    for (int64_t done = 0; done < block.keys; done += kKeys) {
        const int left = int(min(block.keys - done, 2 * kKeys));
        cp_async_wait<0>();
        sync_block(); // k is there; all are done with v
        v_copy.start(kV, int(min(left, kKeys)), 2 * dim);
        cp_async_commit();

        float s[4][4] = {};
        MVIT_NO_UNROLL
        for (int group = 0; group < Rows::kChunks; group += kGroup) {
            MVIT_UNROLL
            for (int chunk = 0; chunk < kGroup; ++chunk) {
                Float4 x[4], y[4];
                MVIT_UNROLL
                for (int i = 0; i < 4; ++i) {
                    x[i] = load_shared<Float4>(Rows::offset(first_row + 4 * i, group + chunk));
                    y[i] = load_shared<Float4>(kK + Rows::offset(column + 8 * i, group + chunk));
                }
                MVIT_UNROLL
                for (int c = 0; c < 4; ++c) {
                    MVIT_UNROLL
                    for (int i = 0; i < 4; ++i) {
                        MVIT_UNROLL
                        for (int j = 0; j < 4; ++j)
                            s[i][j] = multiply_add(x[i].value[c], y[j].value[c], s[i][j]);
                    }
                }
            }
        }
        MVIT_UNROLL
        for (int j = 0; j < 4; ++j) {
            uint32_t entries = 0;
            if constexpr (kRelPos)
                entries = load_shared<uint32_t>(bias.keys + Shared(4 * (column + 8 * j)));
            MVIT_UNROLL
            for (int i = 0; i < 4; ++i) {
                s[i][j] *= sign;
                if constexpr (kRelPos)
                    s[i][j] += bias.bias(first_row + 4 * i, entries);
                if (column + 8 * j >= left)
                    s[i][j] = negative_infinity();
            }
        }

        MVIT_UNROLL
        for (int i = 0; i < 4; ++i) {
            float most = top[i];
            MVIT_UNROLL
            for (int j = 0; j < 4; ++j)
                most = maximum(most, s[i][j]);
            most = maximum(most, shuffle_xor(most, 1));
            most = maximum(most, shuffle_xor(most, 2));
            most = maximum(most, shuffle_xor(most, 4));
            // A row of -inf alone so far: 2^(-inf - 0) is 0, 2^(-inf + inf) would be NaN.
            const float from = most == negative_infinity() ? 0 : most;
            const float shrink = fast_exp2((top[i] - from) * unit);
            top[i] = most;
            sum[i] *= shrink;
            MVIT_UNROLL
            for (int c = 0; c < kOwn; ++c)
                o[i][c] *= shrink;
            MVIT_UNROLL
            for (int j = 0; j < 4; ++j) {
                const float e = fast_exp2((s[i][j] - from) * unit);
                sum[i] += e;
                store_shared(kProbability + Shared((first_row + 4 * i) * kPitch + 4 * (column + 8 * j)), e);
            }
        }

        cp_async_wait<0>();
        sync_block(); // v is there; all are done with k
        if (left > kKeys) {
            k_copy.start(kK, left - kKeys, 2 * dim);
            cp_async_commit();
            if constexpr (kRelPos)
                bias.first_tile(p, block.first_key + done + kKeys, kKeys);
        }
        MVIT_NO_UNROLL
        for (int group = 0; group < kKeys; group += 8) {
            MVIT_UNROLL
            for (int half = 0; half < 8; half += 4) {
                Float4 e[4];
                MVIT_UNROLL
                for (int i = 0; i < 4; ++i)
                    e[i] =
                        load_shared<Float4>(kProbability + Shared((first_row + 4 * i) * kPitch + 4 * (group + half)));
                MVIT_UNROLL
                for (int key = 0; key < 4; ++key) {
                    MVIT_UNROLL
                    for (int m = 0; m < kOwn / kWide; ++m) {
                        const int channel = (column + 8 * m) * kWide;
                        const Wide value = load_shared<Wide>(kV + Rows::offset(group + half + key, channel / 4) +
                                                             Shared(channel % 4 * 4));
                        MVIT_UNROLL
                        for (int i = 0; i < 4; ++i) {
                            MVIT_UNROLL
                            for (int c = 0; c < kWide; ++c)
                                o[i][m * kWide + c] += e[i].value[key] * value.value[c];
                        }
                    }
                }
            }
        }
    }

    MVIT_UNROLL
    for (int i = 0; i < 4; ++i) {
        MVIT_UNROLL
        for (int mask = 1; mask < 8; mask *= 2)
            sum[i] += shuffle_xor(sum[i], mask);
        const int row = first_row + 4 * i;
        if (row >= block.queries)
            continue;
        if (column == 0)
            store_row_sum(f, block, row, top[i], sum[i]);
        const bool is_part = f.splits > 1, residual = !is_part && block.has_residual(p, row);
        const float factor = is_part ? 1 : 1 / sum[i];
        float *const to =
            is_part ? part_of_row(f, block, row) : static_cast<float *>(p.out) + output_row(p, block, row);
        MVIT_UNROLL
        for (int m = 0; m < kOwn / kWide; ++m) {
            const int channel = (column + 8 * m) * kWide;
            if (channel >= dim)
                continue;
            Wide value = {};
            if (residual)
                value = load_shared<Wide>(Rows::offset(row, channel / 4) + Shared(channel % 4 * 4));
            MVIT_UNROLL
            for (int c = 0; c < kWide; ++c)
                value.value[c] += o[i][m * kWide + c] * factor;
            store_global(to + channel, value);
        }
    }
}

} // namespace mvit::cuda
