// Pooling attention, forward. One block: 64 queries of one (batch, head), 16 for each of 4 warps; keys in tiles of 64.
//   global -> shared    q once, into the room of the second stage; k and v through a 2-stage cp.async ring
//   shared -> register  ldmatrix (transposed for v); S = q k^T by mma.m16n8k16, float32 accumulators
//   register            * scale + relative position, running max and sum (base 2), P in the input dtype, O += P v
//   epilogue            / sum, + q (residual pooling), rounded once, stored as rows of 16 bytes of (B, Nq, H, D)
// One barrier per tile: behind it the tile has landed for all, and all are done with the one before, whose room the
// next copy takes. Work per block: 4 * 64 * Nk * D FLOP; traffic (64 + 2 * Nk) * D elements in, 64 * D out.
#pragma once

#include "common/attention_tiles.h"
#include "cuda/kernels/tile_copy.h"
#include "cuda/primitives/mma.h"

namespace mvit::cuda {

// A bool as a type, for `if constexpr` on an argument.
template <bool kValue> struct Constant {
    static constexpr bool value = kValue;
};

// The bias entries of keys: three 10-bit numbers of entries in a query's row.
MVIT_DEVICE uint32_t rel_pos_of_key(const AttentionProblem &p, int64_t key) {
    const int64_t none = p.grid_k.t + p.grid_k.h + p.grid_k.w;
    if (key < (p.has_cls ? 1 : 0) || key >= p.keys)
        return uint32_t(none | none << 10 | none << 20);
    const uint32_t i = uint32_t(key - (p.has_cls ? 1 : 0)), width = uint32_t(p.grid_k.w), height = uint32_t(p.grid_k.h);
    const uint32_t t = i / width / height, h = i / width % height, w = i % width;
    return t | (uint32_t(p.grid_k.t) + h) << 10 | (uint32_t(p.grid_k.t + p.grid_k.h) + w) << 20;
}

template <class T, int kDim, bool kRelPos>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(attention_tile(kDim).threads, attention_tile(kDim).blocks)
    pooling_attention(const MVIT_GRID_CONSTANT AttentionProblem p) {
    // Numbers, not the struct: GCC 12 fails on a constexpr struct inside a lambda under -fsanitize=undefined.
    constexpr int kRows = attention_tile(kDim).rows, kKeys = attention_tile(kDim).keys;
    constexpr int kStages = attention_tile(kDim).stages, kThreads = attention_tile(kDim).threads;
    using Rows = Tile<kDim>;
    constexpr Shared kTileBytes = kKeys * Rows::kRowBytes;
    constexpr Shared kStage = 2 * kTileBytes; // keys, then values
    constexpr Shared kBias = kStages * kStage;
    constexpr int kKeySteps = kKeys / 16, kDimSteps = kDim / 16;
    static_assert(kRows == 16 * kThreads / kWarp && kRows <= 2 * kKeys && kStages == 2, "");

    const int thread = thread_index(), lane = lane_index(), warp = warp_index();
    const int64_t row_tiles = ceil_div(p.queries, kRows), block = block_index();
    const int64_t first_query = block % row_tiles * kRows;
    const int64_t head = block / row_tiles % p.heads, batch = block / row_tiles / p.heads;
    const int queries = int(min(p.queries - first_query, kRows));
    const int dim = int(p.head_dim);
    const auto at = [&](const void *base, int64_t b, int64_t h) {
        return static_cast<const char *>(base) + 2 * (batch * b + head * h);
    };

    const char *const q = at(p.q, p.q_stride_b, p.q_stride_h) + 2 * first_query * p.q_stride_n;
    TileCopy<kKeys, kDim, kThreads> k_copy(at(p.k, p.k_stride_b, p.k_stride_h), p.k_stride_n);
    TileCopy<kKeys, kDim, kThreads> v_copy(at(p.v, p.v_stride_b, p.v_stride_h), p.v_stride_n);
    TileCopy<kRows, kDim, kThreads>(q, p.q_stride_n).start(kStage, queries, dim);
    k_copy.start(0, int(min(p.keys, kKeys)), dim);
    v_copy.start(kTileBytes, int(min(p.keys, kKeys)), dim);
    cp_async_commit();

    // Never 0, for -inf * 0 would be NaN.
    const float scale = p.scale == 0 ? 1e-30f : float(p.scale < 0 ? -p.scale : p.scale) * kLog2E;
    const int entries = kRelPos ? int(p.grid_k.t + p.grid_k.h + p.grid_k.w) : 0, bias_row = 4 * (entries + 1);
    const Shared key_entries = kBias + Shared(kRows * bias_row);
    if constexpr (kRelPos) {
        const float *const rel_pos = static_cast<const float *>(p.rel_pos) + batch * p.rel_pos_stride_b +
                                     head * p.rel_pos_stride_h + first_query * p.rel_pos_stride_n;
        for (int row = warp; row < kRows; row += kThreads / kWarp) {
            const bool biased = row < queries && first_query + row >= (p.has_cls ? 1 : 0);
            for (int entry = lane; entry <= entries; entry += kWarp)
                store_shared(kBias + Shared(row * bias_row + 4 * entry),
                             biased && entry < entries
                                 ? load_global<float>(rel_pos + row * p.rel_pos_stride_n + entry) * kLog2E
                                 : 0.0f);
        }
        if (thread < kKeys)
            store_shared(key_entries + Shared(4 * thread), rel_pos_of_key(p, thread));
    }

    // Fragments of q stay in registers. A negative scale is moved into q, so that the largest score is the largest
    // product.
    uint32_t q_fragment[kDimSteps][4];
    cp_async_wait<0>();
    sync_block();
    MVIT_UNROLL
    for (int d = 0; d < kDimSteps; ++d) {
        ldmatrix_x4(q_fragment[d], kStage + Rows::offset(16 * warp + lane % 16, 2 * d + lane / 16));
        if (p.scale < 0) {
            MVIT_UNROLL
            for (int i = 0; i < 4; ++i)
                q_fragment[d][i] ^= 0x80008000u;
        }
    }

    float o[2 * kDimSteps][4] = {};
    float top[2] = {negative_infinity(), negative_infinity()}, sum[2] = {0, 0}; // of rows lane / 4 and lane / 4 + 8
    Shared stage = 0, entries_of_tile = key_entries;
    // One tile of keys, of which and of all later ones `left` are there. Only the last may be short.
    const auto step = [&](auto is_last, int64_t left) {
        cp_async_wait<0>();
        sync_block();
        if constexpr (!is_last.value) {
            const int next = int(min(left - kKeys, kKeys));
            k_copy.start(kStage - stage, next, dim);
            v_copy.start(kStage - stage + kTileBytes, next, dim);
            cp_async_commit();
            if constexpr (kRelPos)
                if (thread < kKeys)
                    store_shared(2 * key_entries + kKeys * 4 - entries_of_tile + Shared(4 * thread),
                                 rel_pos_of_key(p, p.keys - left + kKeys + thread));
        }

        float s[2 * kKeySteps][4] = {};
        MVIT_UNROLL
        for (int d = 0; d < kDimSteps; ++d) {
            MVIT_UNROLL
            for (int n = 0; n < kKeySteps; ++n) {
                uint32_t b[4];
                ldmatrix_x4(b, stage + Rows::offset(lane / 16 * 8 + lane % 8, 2 * d + lane / 8 % 2) +
                                   Shared(16 * n * Rows::kRowBytes));
                mma_m16n8k16<T>(s[2 * n], q_fragment[d], b[0], b[1]);
                mma_m16n8k16<T>(s[2 * n + 1], q_fragment[d], b[2], b[3]);
            }
        }

        if constexpr (kRelPos) {
            const Shared bias = kBias + Shared((16 * warp + lane / 4) * bias_row);
            MVIT_UNROLL
            for (int n = 0; n < 2 * kKeySteps; ++n) {
                const Vector8 keys = load_shared<Vector8>(entries_of_tile + Shared((8 * n + 2 * (lane % 4)) * 4));
                MVIT_UNROLL
                for (int column = 0; column < 2; ++column) {
                    const uint32_t packed = keys.word[column];
                    const Shared t = bias + (packed & 1023) * 4, h = bias + (packed >> 10 & 1023) * 4,
                                 w = bias + (packed >> 20) * 4;
                    MVIT_UNROLL
                    for (int i = 0; i < 2; ++i) {
                        const Shared down = Shared(8 * i * bias_row);
                        s[n][2 * i + column] = s[n][2 * i + column] * scale +
                                               (load_shared<float>(t + down) +
                                                (load_shared<float>(h + down) + load_shared<float>(w + down)));
                    }
                }
            }
        }
        if constexpr (is_last.value) {
            const int keys = int(left);
            MVIT_UNROLL
            for (int n = 0; n < 2 * kKeySteps; ++n) {
                MVIT_UNROLL
                for (int i = 0; i < 4; ++i)
                    if (8 * n + 2 * (lane % 4) + i % 2 >= keys)
                        s[n][i] = negative_infinity();
            }
        }

        // With relative position s is in units of log 2 already; otherwise the factor goes into the exponent.
        const float unit = kRelPos ? 1 : scale;
        float shift[2], shrink[2];
        bool raised = false;
        MVIT_UNROLL
        for (int i = 0; i < 2; ++i) {
            float most = top[i];
            MVIT_UNROLL
            for (int n = 0; n < 2 * kKeySteps; ++n)
                most = maximum(most, maximum(s[n][2 * i], s[n][2 * i + 1]));
            most = maximum(most, shuffle_xor(most, 1));
            most = maximum(most, shuffle_xor(most, 2));
            raised = raised || most != top[i];
            // A row of -inf alone so far: exp2(-inf - 0) is 0, exp2(-inf + inf) would be NaN.
            shift[i] = most == negative_infinity() ? 0 : most * unit;
            shrink[i] = fast_exp2(top[i] * unit - shift[i]);
            top[i] = most;
        }
        if (any(raised)) {
            MVIT_UNROLL
            for (int i = 0; i < 2; ++i)
                sum[i] *= shrink[i];
            MVIT_UNROLL
            for (int d = 0; d < 2 * kDimSteps; ++d) {
                MVIT_UNROLL
                for (int i = 0; i < 4; ++i)
                    o[d][i] *= shrink[i / 2];
            }
        }

        MVIT_UNROLL
        for (int n = 0; n < kKeySteps; ++n) {
            uint32_t probability[4];
            MVIT_UNROLL
            for (int half = 0; half < 2; ++half) {
                float *const e = s[2 * n + half];
                MVIT_UNROLL
                for (int i = 0; i < 4; ++i)
                    e[i] = fast_exp2(e[i] * unit - shift[i / 2]);
                sum[0] += e[0] + e[1];
                sum[1] += e[2] + e[3];
                probability[2 * half] = pack<T>(e[0], e[1]);
                probability[2 * half + 1] = pack<T>(e[2], e[3]);
            }
            MVIT_UNROLL
            for (int d = 0; d < kDimSteps; ++d) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, stage + kTileBytes + Rows::offset(lane % 16, 2 * d + lane / 16) +
                                         Shared(16 * n * Rows::kRowBytes));
                mma_m16n8k16<T>(o[2 * d], probability, b[0], b[1]);
                mma_m16n8k16<T>(o[2 * d + 1], probability, b[2], b[3]);
            }
        }
        stage = kStage - stage;
        entries_of_tile = 2 * key_entries + kKeys * 4 - entries_of_tile;
    };
    int64_t left = p.keys;
    MVIT_NO_UNROLL
    for (; left > kKeys; left -= kKeys)
        step(Constant<false>{}, left);
    step(Constant<true>{}, left);

    // Each warp turns its 16 rows round through shared memory: q comes in by rows, O goes out by rows.
    sync_block();
    constexpr int kRowStep = kWarp / Rows::kGroup;
    const int row = lane / Rows::kGroup, first_chunk = lane % Rows::kGroup;
    const auto is_inside = [&](int r, int chunk) { return 16 * warp + r < queries && chunk * 8 < dim; };
    const auto has_residual = [&](int r) {
        return p.residual == Residual::all ||
               (p.residual == Residual::no_cls && first_query + 16 * warp + r >= (p.has_cls ? 1 : 0));
    };
    MVIT_UNROLL
    for (int r = row; r < 16; r += kRowStep) {
        MVIT_UNROLL
        for (int chunk = first_chunk; chunk < Rows::kChunks; chunk += Rows::kGroup) {
            Vector16 value = {};
            if (is_inside(r, chunk) && has_residual(r))
                value = load_global<Vector16>(q + 2 * ((16 * warp + r) * p.q_stride_n + chunk * 8));
            store_shared(Rows::offset(16 * warp + r, chunk), value);
        }
    }
    sync_warp();
    MVIT_UNROLL
    for (int i = 0; i < 2; ++i) {
        sum[i] += shuffle_xor(sum[i], 1);
        sum[i] += shuffle_xor(sum[i], 2);
        const float inverse = 1 / sum[i];
        const int r = 16 * warp + lane / 4 + 8 * i;
        MVIT_UNROLL
        for (int d = 0; d < 2 * kDimSteps; ++d) {
            const Shared pair = Rows::offset(r, d) + Shared(4 * (lane % 4));
            float low, high;
            unpack<T>(load_shared<uint32_t>(pair), low, high);
            store_shared(pair, pack<T>(o[d][2 * i] * inverse + low, o[d][2 * i + 1] * inverse + high));
        }
        if (lane % 4 == 0 && r < queries)
            store_global(static_cast<float *>(p.lse) + (batch * p.heads + head) * p.queries + first_query + r,
                         top[i] * (kRelPos ? kLn2 : scale * kLn2) + fast_log2(sum[i]) * kLn2);
    }
    sync_warp();
    MVIT_UNROLL
    for (int r = row; r < 16; r += kRowStep) {
        MVIT_UNROLL
        for (int chunk = first_chunk; chunk < Rows::kChunks; chunk += Rows::kGroup)
            if (is_inside(r, chunk))
                store_global(
                    static_cast<char *>(p.out) +
                        2 * (((batch * p.queries + first_query + 16 * warp + r) * p.heads + head) * p.head_dim +
                             chunk * 8),
                    load_shared<Vector16>(Rows::offset(16 * warp + r, chunk)));
    }
}

} // namespace mvit::cuda
