// Pooling attention of 16-bit numbers, forward. One block: 128 queries of one (batch, head), 32 for each of 4 warps, so
// that a fragment of k or v serves two products; keys in tiles of 64.
//   global -> shared    q once, and it stays; k and v in turn by cp.async: one comes while the other is used
//   shared -> register  ldmatrix (transposed for v); S = q k^T by mma.m16n8k16, float32 accumulators
//   register            + relative position, running max and sum (base 2), P in the input dtype, O += P v
//   epilogue            / sum, + q (residual pooling), rounded once, stored as rows of 16 bytes of (B, Nq, H, D); or,
//                       where keys are split among blocks, this split's part in float32
// Two barriers per tile, behind which k or v has landed and the other's room is free. Work per block: 4 * 128 * Nk *
// D FLOP; traffic (128 + 2 * Nk) * D elements in, 128 * D out.
#pragma once

#include "cuda/kernels/attention_block.h"
#include "cuda/kernels/online_softmax.h"
#include "cuda/kernels/rel_pos_product.h"
#include "cuda/kernels/tile_copy.h"
#include "cuda/primitives/mma.h"

namespace mvit::cuda {

template <class T, int kDim, AttentionBias kBias>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(attention_tile(AttentionKernel::half, kDim, kBias).threads,
                                    attention_tile(AttentionKernel::half, kDim, kBias).blocks)
    pooling_attention(const MVIT_GRID_CONSTANT AttentionForward f) {
    // Numbers, not the struct: GCC 12 fails on a constexpr struct inside a lambda under -fsanitize=undefined.
    constexpr int kRows = attention_tile(AttentionKernel::half, kDim, kBias).rows;
    constexpr int kKeys = attention_tile(AttentionKernel::half, kDim, kBias).keys;
    constexpr int kThreads = attention_tile(AttentionKernel::half, kDim, kBias).threads;
    using Rows = Tile<kDim>;
    constexpr Shared kK = kRows * Rows::kRowBytes, kV = kK + kKeys * Rows::kRowBytes;
    constexpr Shared kRelPos = kV + kKeys * Rows::kRowBytes;
    constexpr int kKeySteps = kKeys / 16, kDimSteps = kDim / 16;
    constexpr int kBlocks = kRows / (16 * kThreads / kWarp), kWarpRows = 16 * kBlocks; // of a warp

    const AttentionProblem &p = f.p;
    const AttentionBlock block(f, kRows, kKeys);
    const int lane = lane_index(), first_row = kWarpRows * warp_index(), dim = int(p.head_dim);
    const auto at = [&](const void *base, int64_t b, int64_t h, int64_t n) {
        return static_cast<const char *>(base) + 2 * (block.batch * b + block.head * h + n);
    };
    const char *const k = at(p.k, p.k_stride_b, p.k_stride_h, block.first_key * p.k_stride_n);
    const char *const v = at(p.v, p.v_stride_b, p.v_stride_h, block.first_key * p.v_stride_n);
    TileCopy<kKeys, kDim, kThreads> k_copy(k, p.k_stride_n), v_copy(v, p.v_stride_n);
    TileCopy<kRows, kDim, kThreads> q_copy(at(p.q, p.q_stride_b, p.q_stride_h, block.first_query * p.q_stride_n),
                                           p.q_stride_n);
    q_copy.start(0, block.queries, dim);
    k_copy.start(kK, int(min(block.keys, kKeys)), dim);
    cp_async_commit();

    const float unit = score_scale(p) * kLog2E;
    const uint32_t sign = p.scale < 0 ? 0x80008000u : 0;
    if (sign) {
        cp_async_wait<0>();
        q_copy.apply(0, [=](Vector16 x) {
            return Vector16{{x.word[0] ^ sign, x.word[1] ^ sign, x.word[2] ^ sign, x.word[3] ^ sign}};
        });
    }
    const std::conditional_t<kBias == AttentionBias::product, BiasProduct, BiasRows> bias(p, kRelPos, kRows);
    if constexpr (kBias != AttentionBias::none) {
        bias.load(p, block, kRows, kThreads);
        bias.first_tile(p, block.first_key, kKeys);
    }

    float o[kBlocks][2 * kDimSteps][4] = {};
    OnlineSoftmax softmax[kBlocks];
    // One tile of keys, of which and of all later ones `left` are there. Only the last may be short.
    const auto step = [&](auto is_last, int64_t left) {
        cp_async_wait<0>();
        sync_block(); // k is there; all are done with v
        v_copy.start(kV, is_last.value ? int(left) : kKeys, dim);
        cp_async_commit();

        uint32_t probability[kBlocks][kKeySteps][4];
        float s[kBlocks][2 * kKeySteps][4] = {};
        MVIT_UNROLL
        for (int d = 0; d < kDimSteps; ++d) {
            uint32_t a[kBlocks][4];
            MVIT_UNROLL
            for (int m = 0; m < kBlocks; ++m) {
                ldmatrix_x4(a[m],
                            Rows::offset(first_row + lane % 16, 2 * d + lane / 16) + Shared(16 * m * Rows::kRowBytes));
            }
            MVIT_UNROLL
            for (int n = 0; n < kKeySteps; ++n) {
                uint32_t b[4];
                ldmatrix_x4(b, kK + Rows::offset(lane / 16 * 8 + lane % 8, 2 * d + lane / 8 % 2) +
                                   Shared(16 * n * Rows::kRowBytes));
                MVIT_UNROLL
                for (int m = 0; m < kBlocks; ++m) {
                    mma_m16n8k16<T>(s[m][2 * n], a[m], b[0], b[1]);
                    mma_m16n8k16<T>(s[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
        if constexpr (kBias == AttentionBias::product) {
            Shared keys = bias.key_of_lane(), rows = bias.row_of_lane(first_row);
            MVIT_NO_UNROLL
            for (int entry = 0; entry < bias.depth; entry += 16, rows += 32, keys += 32) {
                uint32_t a[kBlocks][4];
                MVIT_UNROLL
                for (int m = 0; m < kBlocks; ++m)
                    ldmatrix_x4(a[m], rows + Shared(16 * m * bias.pitch));
                MVIT_UNROLL
                for (int n = 0; n < kKeySteps; ++n) {
                    uint32_t b[4];
                    ldmatrix_x4(b, keys + Shared(16 * n * bias.pitch));
                    MVIT_UNROLL
                    for (int m = 0; m < kBlocks; ++m) {
                        mma_m16n8k16<bf16>(s[m][2 * n], a[m], b[0], b[1]);
                        mma_m16n8k16<bf16>(s[m][2 * n + 1], a[m], b[2], b[3]);
                    }
                }
            }
        } else if constexpr (kBias == AttentionBias::gather) {
            MVIT_UNROLL
            for (int n = 0; n < 2 * kKeySteps; ++n) {
                const Vector8 keys = load_shared<Vector8>(bias.keys + Shared((8 * n + 2 * (lane % 4)) * 4));
                MVIT_UNROLL
                for (int i = 0; i < 4 * kBlocks; ++i)
                    s[i / 4][n][i % 4] += bias.bias(first_row + lane / 4 + 8 * (i / 2), keys.word[i % 2]);
            }
        }
        if constexpr (is_last.value) {
            const int keys = int(left);
            MVIT_UNROLL
            for (int n = 0; n < 2 * kKeySteps; ++n) {
                MVIT_UNROLL
                for (int i = 0; i < 4 * kBlocks; ++i)
                    if (8 * n + 2 * (lane % 4) + i % 2 >= keys)
                        s[i / 4][n][i % 4] = negative_infinity();
            }
        }

        MVIT_UNROLL
        for (int m = 0; m < kBlocks; ++m) {
            float shift[2];
            softmax[m].raise(s[m], unit, o[m], shift);
            MVIT_UNROLL
            for (int n = 0; n < 2 * kKeySteps; ++n) {
                softmax[m].exponentials(s[m][n], unit, shift);
                probability[m][n / 2][n % 2 * 2] = pack<T>(s[m][n][0], s[m][n][1]);
                probability[m][n / 2][n % 2 * 2 + 1] = pack<T>(s[m][n][2], s[m][n][3]);
            }
        }

        cp_async_wait<0>();
        sync_block(); // v is there; all are done with k
        if constexpr (!is_last.value) {
            k_copy.start(kK, int(min(left - kKeys, kKeys)), dim);
            cp_async_commit();
            if constexpr (kBias == AttentionBias::product)
                bias.next_tile(p, kKeys);
            else if constexpr (kBias == AttentionBias::gather)
                bias.first_tile(p, block.first_key + block.keys - left + kKeys, kKeys);
        }
        MVIT_UNROLL
        for (int n = 0; n < kKeySteps; ++n) {
            MVIT_UNROLL
            for (int d = 0; d < kDimSteps; ++d) {
                uint32_t b[4];
                ldmatrix_x4_trans(b,
                                  kV + Rows::offset(lane % 16, 2 * d + lane / 16) + Shared(16 * n * Rows::kRowBytes));
                MVIT_UNROLL
                for (int m = 0; m < kBlocks; ++m) {
                    mma_m16n8k16<T>(o[m][2 * d], probability[m][n], b[0], b[1]);
                    mma_m16n8k16<T>(o[m][2 * d + 1], probability[m][n], b[2], b[3]);
                }
            }
        }
    };
    int64_t left = block.keys;
    MVIT_NO_UNROLL
    for (; left > kKeys; left -= kKeys)
        step(Constant<false>{}, left);
    step(Constant<true>{}, left);

    MVIT_UNROLL
    for (int m = 0; m < kBlocks; ++m) {
        softmax[m].finish();
        MVIT_UNROLL
        for (int i = 0; i < 2; ++i) {
            const int row = first_row + 16 * m + lane / 4 + 8 * i;
            if (lane % 4 == 0 && row < block.queries)
                store_row_sum(f, block, row, softmax[m].top[i], softmax[m].sum[i]);
            if (f.splits > 1) {
                MVIT_UNROLL
                for (int d = 0; d < 2 * kDimSteps; ++d)
                    if (row < block.queries && 8 * d < dim)
                        store_global(part_of_row(f, block, row) + 8 * d + 2 * (lane % 4),
                                     Float2{{o[m][d][2 * i], o[m][d][2 * i + 1]}});
                continue;
            }
            // Into the tile of q, the residual: q comes in by rows, O goes out by rows.
            const float inverse = 1 / softmax[m].sum[i];
            const bool has_residual = block.has_residual(p, row);
            MVIT_UNROLL
            for (int d = 0; d < 2 * kDimSteps; ++d) {
                const Shared pair = Rows::offset(row, d) + Shared(4 * (lane % 4));
                float low, high;
                unpack<T>(load_shared<uint32_t>(pair) ^ sign, low, high);
                if (!has_residual)
                    low = high = 0;
                store_shared(pair, pack<T>(o[m][d][2 * i] * inverse + low, o[m][d][2 * i + 1] * inverse + high));
            }
        }
    }
    if (f.splits > 1)
        return;
    sync_warp();
    MVIT_UNROLL
    for (int r = lane / Rows::kGroup; r < kWarpRows; r += kWarp / Rows::kGroup) {
        MVIT_UNROLL
        for (int chunk = lane % Rows::kGroup; chunk < Rows::kChunks; chunk += Rows::kGroup)
            if (first_row + r < block.queries && chunk * 8 < dim)
                store_global(static_cast<char *>(p.out) + 2 * (output_row(p, block, first_row + r) + chunk * 8),
                             load_shared<Vector16>(Rows::offset(first_row + r, chunk)));
    }
}

} // namespace mvit::cuda
