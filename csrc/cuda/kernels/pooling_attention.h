// Pooling attention of 16-bit numbers, forward. One block: 128 queries of one (batch, head), 32 for each of 4 warps, so
// that a fragment of k or v serves two products; keys in tiles of 64.
//   global -> shared    q once, and it stays; k and v in turn by cp.async: one comes while the other is used
//   shared -> register  ldmatrix (transposed for v); S = q k^T by mma.m16n8k16, float32 accumulators
//   register            + relative position, running max and sum (base 2), P in the input dtype, O += P v
//   epilogue            / sum, + q (residual pooling), rounded once, stored as rows of 16 bytes of (B, Nq, H, D); or,
//                       where keys are split among blocks, this split's part in float32
// Two barriers per tile, behind which k or v has landed and the other's room is free. The first tile has the keys that
// whole tiles leave over, and a step of its own with the mask. Work per block: 4 * 128 * Nk * D FLOP; traffic
// (128 + 2 * Nk) * D elements in, 128 * D out.
#pragma once

#include "cuda/kernels/attention_block.h"
#include "cuda/kernels/bias_product.h"
#include "cuda/kernels/online_softmax.h"
#include "cuda/kernels/tile_copy.h"
#include "cuda/kernels/tile_product.h"

namespace mvit::cuda {

template <AttentionBias kBias>
using BiasInShared = std::conditional_t<kBias == AttentionBias::product, BiasProduct, BiasRows>;

// The queries of a tile, and the rows of their bias, from memory.
template <class T, int kDim, AttentionBias kBias> struct CopiedQueries {
    static constexpr AttentionTile kTile = attention_tile(AttentionKernel::half, kDim, kBias);

    // Into the start of shared memory, by a cp.async that is to be waited for; with their signs changed by `sign`.
    MVIT_DEVICE void load(const AttentionProblem &p, const AttentionBlock &block, uint32_t sign) const {
        TileCopy<kTile.rows, kDim, kTile.threads> copy(
            static_cast<const char *>(p.q) +
                2 * (block.batch * p.q_stride_b + block.head * p.q_stride_h + block.first_query * p.q_stride_n),
            p.q_stride_n);
        copy.start(0, block.queries, int(p.head_dim));
        cp_async_commit();
        if (sign == 0)
            return;
        cp_async_wait<0>();
        copy.apply(0, [=](Vector16 x) {
            return Vector16{{x.word[0] ^ sign, x.word[1] ^ sign, x.word[2] ^ sign, x.word[3] ^ sign}};
        });
    }
    MVIT_DEVICE void load_bias(const AttentionProblem &p, const AttentionBlock &block,
                               const BiasInShared<kBias> &bias) const {
        bias.load(p, block, kTile.rows, kTile.threads);
    }
};

template <class T, int kDim, AttentionBias kBias, class Queries>
MVIT_DEVICE void attention_of_block(const AttentionForward &f, const Queries &queries) {
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
    const float unit = score_scale(p) * kLog2E;
    const uint32_t sign = p.scale < 0 ? 0x80008000u : 0;
    queries.load(p, block, sign);

    const auto at = [&](const void *base, int64_t b, int64_t h, int64_t n) {
        return static_cast<const char *>(base) + 2 * (block.batch * b + block.head * h + n);
    };
    const char *const k = at(p.k, p.k_stride_b, p.k_stride_h, block.first_key * p.k_stride_n);
    const char *const v = at(p.v, p.v_stride_b, p.v_stride_h, block.first_key * p.v_stride_n);
    int left = int(ceil_div(block.keys, kKeys)) - 1; // whole tiles, after the first
    const int first = int(block.keys - int64_t(left) * kKeys);
    using Copy = TileCopy<kKeys, kDim, kThreads>;
    Copy(k, p.k_stride_n).start(kK, first, dim);
    cp_async_commit();
    const int64_t k_stride = opaque(p.k_stride_n), v_stride = opaque(p.v_stride_n); // no multiples made ahead
    Copy k_copy(k + 2 * first * k_stride, k_stride), v_copy(v + 2 * first * v_stride, v_stride);

    const BiasInShared<kBias> bias(p, kRelPos, kRows);
    if constexpr (kBias != AttentionBias::none) {
        queries.load_bias(p, block, bias);
        bias.first_tile(p, block.first_key, kKeys);
    }

    const LaneRow<kDim> depth_row = rows_by_depth<kDim>(lane), column_row = rows_by_column<kDim>(lane);
    const Shared first_q = Shared(first_row * Rows::kRowBytes);
    float o[kBlocks][2 * kDimSteps][4] = {};
    OnlineSoftmax softmax[kBlocks];
    // One tile of keys, of which `left` follow.
    const auto step = [&](auto is_first) {
        cp_async_wait<0>();
        sync_block(); // k is there; all are done with v
        if constexpr (is_first.value)
            Copy(v, p.v_stride_n).start(kV, first, dim);
        else
            v_copy.start_whole(kV, dim);
        cp_async_commit();

        uint32_t probability[kBlocks][kKeySteps][4];
        float s[kBlocks][2 * kKeySteps][4] = {};
        MVIT_UNROLL
        for (int d = 0; d < kDimSteps; ++d) {
            uint32_t a[kBlocks][4];
            MVIT_UNROLL
            for (int m = 0; m < kBlocks; ++m) {
                ldmatrix_x4(a[m], first_q + depth_row(d, m));
            }
            MVIT_UNROLL
            for (int n = 0; n < kKeySteps; ++n) {
                uint32_t b[4];
                ldmatrix_x4(b, kK + column_row(d, n));
                MVIT_UNROLL
                for (int m = 0; m < kBlocks; ++m) {
                    mma_m16n8k16<T>(s[m][2 * n], a[m], b[0], b[1]);
                    mma_m16n8k16<T>(s[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
        if constexpr (kBias == AttentionBias::product) {
            const int pitch = opaque(bias.pitch), place = opaque(lane);
            Shared keys = bias.key_of_lane(place), rows = bias.row_of_lane(first_row, place);
            MVIT_NO_UNROLL
            for (int entry = 0; entry < int(bias_product_depth(p.grid_k.t + p.grid_k.h + p.grid_k.w));
                 entry += 16, rows += 32, keys += 32) {
                uint32_t a[kBlocks][4];
                MVIT_UNROLL
                for (int m = 0; m < kBlocks; ++m)
                    ldmatrix_x4(a[m], rows + Shared(16 * m * pitch));
                MVIT_UNROLL
                for (int n = 0; n < kKeySteps; ++n) {
                    uint32_t b[4];
                    ldmatrix_x4(b, keys + Shared(16 * n * pitch));
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
        if constexpr (is_first.value) {
            MVIT_UNROLL
            for (int n = 0; n < 2 * kKeySteps; ++n) {
                MVIT_UNROLL
                for (int i = 0; i < 4 * kBlocks; ++i)
                    if (8 * n + i % 2 >= first - 2 * (opaque(lane) % 4))
                        s[i / 4][n][i % 4] = negative_infinity();
            }
        }

        MVIT_UNROLL
        for (int m = 0; m < kBlocks; ++m) {
            if constexpr (is_first.value)
                softmax[m].begin(s[m], unit);
            else
                softmax[m].go_on(s[m], unit, o[m]);
            MVIT_UNROLL
            for (int n = 0; n < 2 * kKeySteps; ++n) {
                softmax[m].exponentials(s[m][n], unit);
                probability[m][n / 2][n % 2 * 2] = pack<T>(s[m][n][0], s[m][n][1]);
                probability[m][n / 2][n % 2 * 2 + 1] = pack<T>(s[m][n][2], s[m][n][3]);
            }
        }

        cp_async_wait<0>();
        sync_block(); // v is there; all are done with k
        // Behind the last tile: zeros, where that saves a branch in the loop.
        if (kBias == AttentionBias::none || left > 0) {
            k_copy.start_whole(kK, dim, left > 0);
            cp_async_commit();
            if constexpr (kBias == AttentionBias::product) {
                if constexpr (is_first.value)
                    bias.first_tile(p, block.first_key + first, kKeys);
                else
                    bias.next_tile(p, kKeys);
            } else if constexpr (kBias == AttentionBias::gather) {
                bias.first_tile(p, block.first_key + block.keys - left * kKeys, kKeys);
            }
        }
        MVIT_UNROLL
        for (int n = 0; n < kKeySteps; ++n) {
            MVIT_UNROLL
            for (int d = 0; d < kDimSteps; ++d) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, kV + depth_row(d, n));
                MVIT_UNROLL
                for (int m = 0; m < kBlocks; ++m) {
                    mma_m16n8k16<T>(o[m][2 * d], probability[m][n], b[0], b[1]);
                    mma_m16n8k16<T>(o[m][2 * d + 1], probability[m][n], b[2], b[3]);
                }
            }
        }
    };
    step(Constant<true>{});
    MVIT_NO_UNROLL
    while (left > 0) {
        --left;
        step(Constant<false>{});
    }
    cp_async_wait<0>();
    const AttentionBlock end(f, kRows, kKeys, block_index_again());
    MVIT_UNROLL
    for (int m = 0; m < kBlocks; ++m) {
        softmax[m].finish();
        MVIT_UNROLL
        for (int i = 0; i < 2; ++i) {
            const int row = first_row + 16 * m + lane / 4 + 8 * i;
            if (lane % 4 == 0 && row < end.queries)
                store_row_sum(f, end, row, softmax[m].shift[i] * kLn2, softmax[m].sum[i]);
            if (f.splits > 1) {
                MVIT_UNROLL
                for (int d = 0; d < 2 * kDimSteps; ++d)
                    if (row < end.queries && 8 * d < dim)
                        store_global(part_of_row(f, end, row) + 8 * d + 2 * (lane % 4),
                                     Float2{{o[m][d][2 * i], o[m][d][2 * i + 1]}});
                continue;
            }
            // Into the tile of q, the residual: q comes in by rows, O goes out by rows.
            const float inverse = 1 / softmax[m].sum[i];
            const bool has_residual = end.has_residual(p, row);
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
            if (first_row + r < end.queries && chunk * 8 < dim)
                store_global(static_cast<char *>(p.out) + 2 * (output_row(p, end, first_row + r) + chunk * 8),
                             load_shared<Vector16>(Rows::offset(first_row + r, chunk)));
    }
}

template <class T, int kDim, AttentionBias kBias>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(attention_tile(AttentionKernel::half, kDim, kBias).threads,
                                    attention_tile(AttentionKernel::half, kDim, kBias).blocks)
    pooling_attention(const MVIT_GRID_CONSTANT AttentionForward f) {
    attention_of_block<T, kDim, kBias>(f, CopiedQueries<T, kDim, kBias>{});
}

} // namespace mvit::cuda
