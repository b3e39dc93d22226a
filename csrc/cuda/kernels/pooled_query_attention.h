// Pooling attention with the pooling of q in it. A block makes its own tile of queries:
//   global -> shared    the taps and the norm's vectors, into the room that k and v will have
//   global -> register  the tokens under the windows of a strip of 4 queries, 8 channels a thread
//   register -> shared  pooled and normalised in float32, rounded once to the input dtype: the tile of q, from which
//                       both the scores and the residual come
//   shared, global      the rows of relative position: each the inner products of a query with its rows of the tables
// and goes on as pooling_attention does. Pooled q and the rows never go to memory; nothing is computed twice but the
// strips that two tiles share.
#pragma once

#include "common/pooled_query.h"
#include "cuda/kernels/pool_strip.h"
#include "cuda/kernels/pooling_attention.h"

namespace mvit::cuda {

template <class T, int kDim, AttentionBias kBias> struct PooledQueries {
    static constexpr int kRows = attention_tile(AttentionKernel::half, kDim, kBias).rows;
    static constexpr int kThreads = attention_tile(AttentionKernel::half, kDim, kBias).threads;
    using Rows = Tile<kDim>;
    static_assert(kThreads == kPoolThreads && kBias != AttentionBias::gather, "");

    const PooledQueryProblem &problem;

    MVIT_DEVICE void load(const AttentionProblem &p, const AttentionBlock &block, uint32_t sign) const {
        const PoolBranch &b = problem.pool.branch[0];
        const int64_t strips = pool_strips(problem.pool, b);
        const PoolPlace place(
            problem.pool, (block.batch * p.heads + block.head) * ceil_div(strips, kPoolGroups * kPoolPasses), strips);
        for (int i = thread_index(); i < kRows * Rows::kChunks; i += kThreads)
            store_shared(Shared(16 * i), Vector16{});
        constexpr Shared kParameters = kRows * Rows::kRowBytes;
        const int taps = stage_taps(problem.pool, b, place, kParameters);
        const Norm norm{b, kParameters + Shared(taps * kPoolChannels * 4)};
        norm.stage(0, place.channels);
        sync_block();

        // The strips that the tile's queries are of, and the cls token.
        const int64_t cls = p.has_cls ? 1 : 0;
        const int64_t first = max(block.first_query - cls, 0), last = block.first_query + block.queries - 1 - cls;
        const auto strip_of = [&](int64_t position) {
            return position / b.out_grid.w * pool_strips_of_row(b) + position % b.out_grid.w / kPoolStrip;
        };
        const int64_t first_strip = strip_of(first), count = last < 0 ? 0 : strip_of(last) - first_strip + 1;
        const bool has_cls = p.has_cls && block.first_query == 0, has_channels = place.has_channels();
        const char *const x = place.template tokens<T>(static_cast<const char *>(b.x), b.stride_b, b.stride_h);
        MVIT_NO_UNROLL
        for (int64_t done = 0; done < count + has_cls; done += kPoolGroups) {
            const int64_t index = done + place.group;
            float value[kPoolStrip][8] = {};
            int outputs = 0;
            int64_t row = 0; // of the tile
            if (has_channels && index < count) {
                const PoolStrip strip(b, x, first_strip + index, kParameters + Shared(4 * place.first));
                pool_strip_of_mode<T>(b, p.has_cls, strip, value);
                outputs = strip.outputs;
                row = strip.token(b, p.has_cls) - block.first_query;
            } else if (has_channels && has_cls && index == count) {
                Channels<T>::load(x, value[0]);
                outputs = 1;
            }
            MVIT_UNROLL
            for (int i = 0; i < kPoolStrip; ++i) {
                norm.apply(value[i], place.first, has_channels, p.head_dim);
                if (i >= outputs || row + i < 0 || row + i >= block.queries)
                    continue;
                Vector16 rounded;
                MVIT_UNROLL
                for (int pair = 0; pair < 4; ++pair)
                    rounded.word[pair] = pack<T>(value[i][2 * pair], value[i][2 * pair + 1]) ^ sign;
                store_shared(Rows::offset(int(row) + i, place.first / 8), rounded);
            }
        }
        sync_block(); // the room of the parameters is free, and the tile is there
    }

    // Row entries are inner products: a warp has a row, a lane an entry.
    MVIT_DEVICE void load_bias(const AttentionProblem &p, const AttentionBlock &block,
                               const BiasInShared<kBias> &bias) const {
        if constexpr (kBias == AttentionBias::product)
            bias.make(p, block, kRows, kThreads, [&](int row, int entry) {
                const Size3 grid = problem.pool.branch[0].out_grid;
                const uint32_t position = uint32_t(block.first_query + row - (p.has_cls ? 1 : 0));
                const uint32_t width = uint32_t(grid.w), height = uint32_t(grid.h);
                const int first_h = int(p.grid_k.t), first_w = first_h + int(p.grid_k.h);
                Parameter table = problem.table_t;
                int64_t of_table = int64_t(position / width / height) * p.grid_k.t + entry;
                if (entry >= first_w) {
                    table = problem.table_w;
                    of_table = int64_t(position % width) * p.grid_k.w + entry - first_w;
                } else if (entry >= first_h) {
                    table = problem.table_h;
                    of_table = int64_t(position / width % height) * p.grid_k.h + entry - first_h;
                }
                float sum = 0;
                if (!table.data)
                    return sum;
                MVIT_NO_UNROLL
                for (int channel = 0; channel < int(p.head_dim); channel += 8) {
                    const Vector16 q = load_shared<Vector16>(Rows::offset(row, channel / 8));
                    float y[8];
                    load_parameters(table, of_table * p.head_dim + channel, y);
                    MVIT_UNROLL
                    for (int pair = 0; pair < 4; ++pair) {
                        float low, high;
                        unpack<T>(q.word[pair], low, high);
                        sum += low * y[2 * pair];
                        sum += high * y[2 * pair + 1];
                    }
                }
                return p.scale < 0 ? -sum : sum; // the tile holds -q
            });
    }
};

template <class T, int kDim, AttentionBias kBias>
MVIT_KERNEL void MVIT_LAUNCH_BOUNDS(attention_tile(AttentionKernel::half, kDim, kBias).threads,
                                    attention_tile(AttentionKernel::half, kDim, kBias).blocks)
    pooled_query_attention(const MVIT_GRID_CONSTANT PooledQueryForward f) {
    attention_of_block<T, kDim, kBias>(f.attention, PooledQueries<T, kDim, kBias>{f.problem});
}

} // namespace mvit::cuda
