// Pooling by windows of 3 x 3 over a tile of outputs that marches along t, so that a token comes from global memory
// once for its tile; forward and backward.
//   global -> shared    a frame of the tile's inputs by cp.async, 16 bytes at a time, while the one before is in use;
//                       zeros outside the grid
//   shared -> register  a thread has two channels and a line of 7 outputs. It reads each input of its three lines once
//                       and adds it to all outputs along w and t that it belongs to: with 3 frames, up to 9 of them
//   register            sums in float32 for 1 or 3 frames of outputs; the taps of a line, from shared memory
//   register -> shared  finished lines as float32 rows; then 16 threads of 8 channels make something of each row
#pragma once

#include "common/pool_tiles.h"
#include "cuda/kernels/pool_strip.h"

namespace mvit::cuda {

// Two neighbouring channels in shared memory.
template <class T> MVIT_DEVICE Float2 load_pair(Shared at) {
    Float2 pair;
    unpack<T>(load_shared<uint32_t>(at), pair.value[0], pair.value[1]);
    return pair;
}
template <> MVIT_DEVICE Float2 load_pair<f32>(Shared at) { return load_shared<Float2>(at); }

// What a block works on.
struct TilePlace {
    int64_t batch, head, first_channel;
    int t, h, w;           // the first output
    int run, lines, width; // outputs along t, h and w
    int channels;
    bool first; // of its (batch, head) and channels

    MVIT_DEVICE TilePlace(const PoolProblem &p, const PoolBranch &b, const PoolTiling &tiling, int tile, int64_t slice,
                          int64_t head, int64_t batch)
        : batch(batch), head(head), first_channel(slice * kPoolChannels), first(tile == 0) {
        const int tiles_h = int(tiling.tiles_h), tiles_w = int(tiling.tiles_w);
        w = tile % tiles_w * kPoolTileWidth;
        h = tile / tiles_w % tiles_h * tiling.lines;
        t = tile / tiles_w / tiles_h * tiling.run;
        width = int(min(b.out_grid.w - w, kPoolTileWidth));
        lines = int(min(b.out_grid.h - h, tiling.lines));
        run = int(min(b.out_grid.t - t, tiling.run));
        channels = int(min(p.head_dim - first_channel, kPoolChannels));
    }

    // `block` counts within the branch.
    static MVIT_DEVICE TilePlace of_block(const PoolProblem &p, const PoolBranch &b, const PoolTiling &tiling,
                                          int64_t block) {
        const int64_t tiles = pool_tiles_of_head(tiling), slices = pool_slices(p), rest = block / tiles;
        return {p, b, tiling, int(block % tiles), rest % slices, rest / slices % p.heads, rest / slices / p.heads};
    }

    MVIT_DEVICE int64_t token(const PoolBranch &b, bool has_cls, int frame, int line, int column) const {
        return (has_cls ? 1 : 0) + ((t + frame) * b.out_grid.h + h + line) * b.out_grid.w + w + column;
    }
};

// The copies of one thread: a 16-byte chunk of every so-many-th token of a frame.
template <class T, int kStep> struct TileFrames {
    static constexpr int kColumns = pool_tile_extent(kPoolTileWidth, kStep);
    const PoolBranch &b;
    const char *from; // chunk of the first grid token
    int first_h, first_w;
    int rows, columns; // of the tile, under windows that exist
    int token, chunk_bytes, token_bytes;

    MVIT_DEVICE TileFrames(const PoolProblem &p, const PoolBranch &b, const TilePlace &place) : b(b) {
        token_bytes = place.channels * Channels<T>::kBytes;
        token = thread_index() / (token_bytes / 16);
        chunk_bytes = thread_index() % (token_bytes / 16) * 16;
        from =
            static_cast<const char *>(b.x) +
            (place.batch * b.stride_b + place.head * b.stride_h + (p.has_cls ? b.stride_n : 0) + place.first_channel) *
                Channels<T>::kBytes +
            chunk_bytes;
        first_h = place.h * int(b.stride.h) - int(b.padding.h), first_w = place.w * int(b.stride.w) - int(b.padding.w);
        rows = pool_tile_extent(place.lines, kStep), columns = pool_tile_extent(place.width, kStep);
    }

    // Where a row or column of the tile lies in the grid.
    MVIT_DEVICE int h(int row) const { return first_h + row / kStep * int(b.stride.h) + row % kStep; }
    MVIT_DEVICE int w(int column) const { return first_w + column / kStep * int(b.stride.w) + column % kStep; }
    MVIT_DEVICE bool has_row(int row) const { return uint32_t(h(row)) < uint32_t(b.in.h); }
    MVIT_DEVICE bool has_column(int column) const { return uint32_t(w(column)) < uint32_t(b.in.w); }

    // Frame t of the inputs, which exists.
    MVIT_DEVICE void start(int t, Shared to) const {
        const int tokens_of_pass = kPoolTileThreads / (token_bytes / 16);
        if (token >= tokens_of_pass)
            return;
        const int64_t first = int64_t(t) * b.in.h;
        MVIT_NO_UNROLL
        for (int i = token; i < rows * kColumns; i += tokens_of_pass) {
            const int row = i / kColumns, column = i % kColumns;
            const bool valid = column < columns && has_row(row) && has_column(column);
            const int64_t at = valid ? ((first + h(row)) * b.in.w + w(column)) * b.stride_n : 0;
            cp_async_16(to + Shared(i * token_bytes + chunk_bytes), from + at * Channels<T>::kBytes, valid);
        }
    }
};

// The sums, or maxima, of one thread: two channels of a line of outputs, for the frames that are not finished yet.
template <class T, PoolMode kMode, int kFrames, int kStep> struct TileLine {
    static_assert(kMode == PoolMode::conv || (kMode == PoolMode::max && kFrames == 1));
    static constexpr int kColumns = pool_tile_extent(kPoolTileWidth, kStep);
    float value[kFrames][kPoolTileWidth][2]; // [0] is of the youngest frame of outputs

    MVIT_DEVICE void start_frame(int frame) {
        MVIT_UNROLL
        for (int o = 0; o < kPoolTileWidth; ++o)
            value[frame][o][0] = value[frame][o][1] = kMode == PoolMode::max ? negative_infinity() : 0;
    }

    // Adds a frame of inputs. `at`: the thread's channels of the first input under its first output, which is in that
    // row of the tile; `taps` too. A maximum reads nothing outside the grid.
    MVIT_DEVICE void add(Shared at, int row, const TileFrames<T, kStep> &in, Shared taps, int pitch) {
        MVIT_UNROLL
        for (int kh = 0; kh < 3; ++kh) {
            if (kMode == PoolMode::max && !in.has_row(row + kh))
                continue;
            float tap[kFrames][3][2];
            if constexpr (kMode == PoolMode::conv) {
                MVIT_UNROLL
                for (int i = 0; i < kFrames * 3; ++i) {
                    const Float2 pair = load_shared<Float2>(taps + Shared((i / 3 * 9 + kh * 3 + i % 3) * pitch * 4));
                    tap[i / 3][i % 3][0] = pair.value[0], tap[i / 3][i % 3][1] = pair.value[1];
                }
            }
            MVIT_UNROLL
            for (int column = 0; column < kColumns; ++column) {
                if (kMode == PoolMode::max && !in.has_column(column))
                    continue;
                const Float2 x = load_pair<T>(at + Shared((kh * kColumns + column) * in.token_bytes));
                MVIT_UNROLL
                for (int kw = column % kStep; kw < 3; kw += kStep) {
                    const int o = (column - kw) / kStep;
                    if (column < kw || o >= kPoolTileWidth)
                        continue;
                    MVIT_UNROLL
                    for (int kt = 0; kt < kFrames; ++kt) {
                        MVIT_UNROLL
                        for (int c = 0; c < 2; ++c)
                            if constexpr (kMode == PoolMode::conv)
                                value[kt][o][c] += x.value[c] * tap[kt][kw][c];
                            else
                                value[kt][o][c] = wins(x.value[c], value[kt][o][c]) ? x.value[c] : value[kt][o][c];
                    }
                }
            }
        }
    }
};

// Pools the tiles of a block. Calls epilogue(frame, line, column, exists, row) for every output, with 8 channels of a
// float32 row; all threads of a warp take part, also those of rows that do not exist and channels that do not exist.
template <class T, PoolMode kMode, int kFrames, int kStep, class Epilogue>
MVIT_DEVICE void pool_tile(const PoolProblem &p, const PoolBranch &b, const PoolTiling &tiling, const TilePlace &place,
                           const Epilogue &epilogue) {
    const TileFrames<T, kStep> in(p, b, place);
    const Shared taps = Shared(2 * tiling.frame_bytes), staging = taps + Shared(tiling.tap_bytes);
    const int pairs = place.channels / 2, line = thread_index() / pairs, pair = thread_index() % pairs;
    const bool pools = line < place.lines;
    TileLine<T, kMode, kFrames, kStep> sums;
    constexpr int kTaps = kFrames * 9;
    const int pitch = pool_tap_pitch(place.channels);

    const int first_t = place.t * int(b.stride.t) - int(b.padding.t);
    const int frames = place.run + kFrames - 1;
    const auto start = [&](int frame) {
        const int t = first_t + frame * int(b.stride.t);
        if (frame < frames && t >= 0 && t < b.in.t)
            in.start(t, Shared(frame % 2 * int(tiling.frame_bytes)));
        cp_async_commit();
    };
    start(0);
    if constexpr (kMode == PoolMode::conv) {
        const int64_t of_weight = ((b.per_head_weight ? place.head * p.head_dim : 0) + place.first_channel) * kTaps;
        for (int i = thread_index(); i < place.channels * kTaps; i += kPoolTileThreads) {
            const int channel = i / kTaps, tap = tiling.flipped ? kTaps - 1 - i % kTaps : i % kTaps;
            store_shared(taps + Shared((tap * pitch + channel) * 4), load_parameter(b.weight, of_weight + i));
        }
    }
    MVIT_UNROLL
    for (int i = 0; i < kFrames; ++i)
        sums.start_frame(i);

    const int group = thread_index() / kPoolLanes, first = thread_index() % kPoolLanes * 8;
    const int rows = place.lines * kPoolTileWidth;
    MVIT_NO_UNROLL
    for (int frame = 0; frame < frames; ++frame) {
        cp_async_wait<0>();
        sync_block(); // the frame is there for all; the one before and the rows are used up
        start(frame + 1);
        const int t = first_t + frame * int(b.stride.t);
        if (pools && t >= 0 && t < b.in.t)
            sums.add(Shared(frame % 2 * int(tiling.frame_bytes) + line * kStep * in.kColumns * in.token_bytes +
                            pair * 2 * Channels<T>::kBytes),
                     line * kStep, in, taps + Shared(8 * pair), pitch);
        const int output = frame - (kFrames - 1);
        if (output >= 0) {
            if (pools) {
                MVIT_UNROLL
                for (int o = 0; o < kPoolTileWidth; ++o)
                    store_shared(staging + Shared(((line * kPoolTileWidth + o) * place.channels + 2 * pair) * 4),
                                 Float2{{sums.value[kFrames - 1][o][0], sums.value[kFrames - 1][o][1]}});
            }
            sync_block();
            MVIT_NO_UNROLL
            for (int row = group; row - group < rows; row += kPoolTileGroups) {
                const int of_line = row / kPoolTileWidth, column = row % kPoolTileWidth;
                const bool exists = row < rows && column < place.width;
                float value[8] = {};
                if (exists && first < place.channels) {
                    const Shared at = staging + Shared((row * place.channels + first) * 4);
                    const Float4 low = load_shared<Float4>(at), high = load_shared<Float4>(at + 16);
                    MVIT_UNROLL
                    for (int c = 0; c < 4; ++c)
                        value[c] = low.value[c], value[4 + c] = high.value[c];
                }
                epilogue(output, of_line, column, exists, value);
            }
        }
        MVIT_UNROLL
        for (int i = kFrames - 1; i > 0; --i) {
            MVIT_UNROLL
            for (int o = 0; o < kPoolTileWidth; ++o) {
                MVIT_UNROLL
                for (int c = 0; c < 2; ++c)
                    sums.value[i][o][c] = sums.value[i - 1][o][c];
            }
        }
        sums.start_frame(0);
    }
    cp_async_wait<0>();
}

template <class T, PoolMode kMode, int kFrames, class Epilogue>
MVIT_DEVICE void pool_tile_of_step(const PoolProblem &p, const PoolBranch &b, const PoolTiling &tiling,
                                   const TilePlace &place, const Epilogue &epilogue) {
    if (tiling.step == 1)
        pool_tile<T, kMode, kFrames, 1>(p, b, tiling, place, epilogue);
    else if (tiling.step == 2)
        pool_tile<T, kMode, kFrames, 2>(p, b, tiling, place, epilogue);
    else
        pool_tile<T, kMode, kFrames, 3>(p, b, tiling, place, epilogue);
}

template <class T, class Epilogue>
MVIT_DEVICE void pool_tile_of_mode(const PoolProblem &p, const PoolBranch &b, const PoolTiling &tiling,
                                   const TilePlace &place, const Epilogue &epilogue) {
    if (b.mode == PoolMode::max)
        pool_tile_of_step<T, PoolMode::max, 1>(p, b, tiling, place, epilogue);
    else if (tiling.frames == 3)
        pool_tile_of_step<T, PoolMode::conv, 3>(p, b, tiling, place, epilogue);
    else
        pool_tile_of_step<T, PoolMode::conv, 1>(p, b, tiling, place, epilogue);
}

// The rows of a block: row(token, exists, value) for every output and, where it belongs to the block, for the cls
// token, which is not pooled. All threads of a warp take part, also those of rows and of channels that do not exist.
template <class T, class Row>
MVIT_DEVICE void pool_tile_rows(const PoolProblem &p, const PoolBranch &b, const PoolTiling &tiling,
                                const TilePlace &place, const Row &row) {
    // First, so that what it needs takes no registers later.
    if (p.has_cls && place.first) {
        sync_block(); // what a row needs of shared memory is there
        const int first = thread_index() % kPoolLanes * 8;
        const bool exists = thread_index() < kPoolLanes;
        float value[8] = {};
        if (exists && first < place.channels)
            Channels<T>::load(static_cast<const char *>(b.x) +
                                  (place.batch * b.stride_b + place.head * b.stride_h + place.first_channel + first) *
                                      Channels<T>::kBytes,
                              value);
        row(0, exists, value);
    }
    pool_tile_of_mode<T>(p, b, tiling, place, [&](int frame, int line, int column, bool exists, float (&value)[8]) {
        row(place.token(b, p.has_cls, frame, line, column), exists, value);
    });
}

} // namespace mvit::cuda
