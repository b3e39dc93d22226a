// Pooling attention of float32 on tensor cores in TF32, forward. One block: 64 queries of one (batch, head), 16 for
// each of 4 warps; keys in tiles of 32.
//   global -> shared    q once; k and v in turn by cp.async: one comes while the other is used; each thread rounds to
//                       TF32, in place, what it has copied itself
//   shared -> register  ldmatrix for q and k: 8 rows of 4 float32 are 8 rows of 8 16-bit numbers; 8 bytes at a time of
//   v register            S = q k^T by mma.m16n8k8; + relative position, running max and sum (base 2); O += P v
//   epilogue            / sum, + q (residual pooling), stored as (B, Nq, H, D), or the split's part
//
// S becomes the A operand of the second product in place. A lane has columns 2c and 2c + 1 of S, c = lane % 4, and
// needs columns c and c + 4 of A; so the keys of each 8 are taken in the order in which the two are the same keys. The
// order is also such that the loads of v, two rows at a time of four keys and four pairs of channels, meet no bank
// twice. The channels of two neighbouring accumulators of O alternate, so that one load of 8 bytes serves two products
// and a lane ends with 4 neighbouring channels.
#pragma once

#include "cuda/kernels/attention_block.h"
#include "cuda/kernels/online_softmax.h"
#include "cuda/kernels/tile_copy.h"
#include "cuda/primitives/mma.h"

namespace mvit::cuda {

// Which of 8 keys is in column `column` of S.
template <int kGroup> MVIT_DEVICE constexpr int tf32_key(int column) {
    return kGroup == 8 ? column : column / 4 * 4 + column % 2 * 2 + column / 2 % 2;
}

template <int kDim, bool kRelPos>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(attention_tile(AttentionKernel::tf32, kDim, AttentionBias::gather).threads,
                                    attention_tile(AttentionKernel::tf32, kDim, AttentionBias::gather).blocks)
    pooling_attention_tf32(const MVIT_GRID_CONSTANT AttentionForward f) {
    constexpr int kRows = attention_tile(AttentionKernel::tf32, kDim, AttentionBias::gather).rows;
    constexpr int kKeys = attention_tile(AttentionKernel::tf32, kDim, AttentionBias::gather).keys;
    constexpr int kThreads = attention_tile(AttentionKernel::tf32, kDim, AttentionBias::gather).threads;
    using Rows = Tile<2 * kDim>; // in 16-bit units
    constexpr Shared kK = kRows * Rows::kRowBytes, kV = kK + kKeys * Rows::kRowBytes;
    constexpr Shared kBias = kV + kKeys * Rows::kRowBytes;
    constexpr int kKeySteps = kKeys / 8, kDimSteps = kDim / 8;
    static_assert(kRows == 16 * kThreads / kWarp && kKeys % 16 == 0, "");

    const AttentionProblem &p = f.p;
    const AttentionBlock block(f, kRows, kKeys);
    const int lane = lane_index(), warp = warp_index(), dim = int(p.head_dim);
    const auto at = [&](const void *base, int64_t b, int64_t h, int64_t n) {
        return static_cast<const float *>(base) + block.batch * b + block.head * h + n;
    };
    const auto round = [](Vector16 x) {
        Vector16 rounded;
        MVIT_UNROLL
        for (int i = 0; i < 4; ++i)
            rounded.word[i] = tf32(x.word[i]);
        return rounded;
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

    // Fragments of q stay in registers; q itself stays for the residual.
    uint32_t q_fragment[kDimSteps][4];
    cp_async_wait<1>();
    sync_block();
    MVIT_UNROLL
    for (int d = 0; d < kDimSteps; ++d) {
        ldmatrix_x4(q_fragment[d], Rows::offset(16 * warp + lane % 16, 2 * d + lane / 16));
        MVIT_UNROLL
        for (int i = 0; i < 4; ++i)
            q_fragment[d][i] = tf32(q_fragment[d][i]) ^ (p.scale < 0 ? 0x80000000u : 0);
    }

    float o[kDimSteps][4] = {};
    OnlineSoftmax softmax;
    MVIT_NO_UNROLL
    for (int64_t done = 0; done < block.keys; done += kKeys) {
        const int left = int(min(block.keys - done, 2 * kKeys));
        cp_async_wait<0>();
        k_copy.apply(kK, round);
        sync_block(); // k is there; all are done with v
        v_copy.start(kV, int(min(left, kKeys)), 2 * dim);
        cp_async_commit();

        float s[kKeySteps][4] = {};
        MVIT_UNROLL
        for (int d = 0; d < kDimSteps; ++d) {
            MVIT_UNROLL
            for (int n = 0; n < kKeySteps; n += 2) {
                uint32_t b[4];
                ldmatrix_x4(b,
                            kK + Rows::offset(lane / 16 * 8 + tf32_key<Rows::kGroup>(lane % 8), 2 * d + lane / 8 % 2) +
                                Shared(8 * n * Rows::kRowBytes));
                mma_m16n8k8_tf32(s[n], q_fragment[d], b[0], b[1]);
                mma_m16n8k8_tf32(s[n + 1], q_fragment[d], b[2], b[3]);
            }
        }
        MVIT_UNROLL
        for (int n = 0; n < kKeySteps; ++n) {
            MVIT_UNROLL
            for (int column = 0; column < 2; ++column) {
                const int key = 8 * n + tf32_key<Rows::kGroup>(2 * (lane % 4) + column);
                uint32_t entries = 0;
                if constexpr (kRelPos)
                    entries = load_shared<uint32_t>(bias.keys + Shared(4 * key));
                MVIT_UNROLL
                for (int i = 0; i < 2; ++i) {
                    if constexpr (kRelPos)
                        s[n][2 * i + column] += bias.bias(16 * warp + lane / 4 + 8 * i, entries);
                    if (key >= left)
                        s[n][2 * i + column] = negative_infinity();
                }
            }
        }
        float shift[2];
        softmax.raise(s, unit, o, shift);
        MVIT_UNROLL
        for (int n = 0; n < kKeySteps; ++n)
            softmax.exponentials(s[n], unit, shift);

        cp_async_wait<0>();
        v_copy.apply(kV, round);
        sync_block(); // v is there; all are done with k
        if (left > kKeys) {
            k_copy.start(kK, left - kKeys, 2 * dim);
            cp_async_commit();
            if constexpr (kRelPos)
                bias.first_tile(p, block.first_key + done + kKeys, kKeys);
        }
        MVIT_UNROLL
        for (int n = 0; n < kKeySteps; ++n) {
            const uint32_t probability[4] = {tf32(s[n][0]), tf32(s[n][2]), tf32(s[n][1]), tf32(s[n][3])};
            MVIT_UNROLL
            for (int d = 0; d < kDimSteps; d += 2) {
                const int pair = lane / 4 + 4 * d; // of channels
                Vector8 b[2];
                MVIT_UNROLL
                for (int half = 0; half < 2; ++half)
                    b[half] = load_shared<Vector8>(
                        kV + Rows::offset(tf32_key<Rows::kGroup>(2 * (lane % 4) + half), pair / 2) +
                        Shared(8 * n * Rows::kRowBytes + pair % 2 * 8));
                mma_m16n8k8_tf32(o[d], probability, b[0].word[0], b[1].word[0]);
                mma_m16n8k8_tf32(o[d + 1], probability, b[0].word[1], b[1].word[1]);
            }
        }
    }

    softmax.finish();
    MVIT_UNROLL
    for (int i = 0; i < 2; ++i) {
        const int row = 16 * warp + lane / 4 + 8 * i;
        if (row >= block.queries)
            continue;
        if (lane % 4 == 0)
            store_row_sum(f, block, row, softmax.top[i], softmax.sum[i]);
        const bool is_part = f.splits > 1, residual = !is_part && block.has_residual(p, row);
        const float factor = is_part ? 1 : 1 / softmax.sum[i];
        float *const to =
            is_part ? part_of_row(f, block, row) : static_cast<float *>(p.out) + output_row(p, block, row);
        MVIT_UNROLL
        for (int d = 0; d < kDimSteps; d += 2) {
            const int channel = 8 * d + 4 * (lane % 4);
            if (channel >= dim)
                continue;
            Float4 value = {};
            if (residual)
                value = load_shared<Float4>(Rows::offset(row, channel / 4));
            MVIT_UNROLL
            for (int c = 0; c < 4; ++c)
                value.value[c] += o[d + c % 2][2 * i + c / 2] * factor;
            store_global(to + channel, value);
        }
    }
}

} // namespace mvit::cuda
