// Decomposed relative position as a product on tensor cores: the bias of a row's keys is its rel-pos entries times a
// matrix that has for each key three ones, at its t, h and w. So it is more depth of q k^T:
//
//   S += [rounded | rest] (queries x 2 entries)  [one-hot | one-hot]^T (2 entries x keys),  both bfloat16
//
// An entry is float32. Rounded to bfloat16 and with the rounded rest beside it, it keeps 16 bits, whatever the input
// dtype; and the exponent of a float32, which float16 would not.
//
// 0 * inf is NaN, so there must be no infinity: -inf, for an excluded key, becomes a number whose exponential is 0. A
// row with NaN or +inf, or in which no key is left, is NaN as a whole, as its softmax would be.
//
// A row of either matrix is as long as an odd number of 16 bytes, so that eight rows lie in different banks; the 16
// bytes at its end are no part of it.
#pragma once

#include "cuda/kernels/attention_block.h"
#include "cuda/primitives/mma.h"

namespace mvit::cuda {

struct BiasProduct {
    Shared rows, keys;
    int depth, pitch; // of both matrices; bytes

    MVIT_DEVICE BiasProduct(const AttentionProblem &p, Shared at, int rows_of_tile) : rows(at) {
        depth = int(bias_product_depth(p.grid_k.t + p.grid_k.h + p.grid_k.w));
        pitch = int(bias_product_pitch(p.grid_k.t + p.grid_k.h + p.grid_k.w));
        keys = at + Shared(rows_of_tile * pitch);
    }

    // The rows in memory.
    MVIT_DEVICE void load(const AttentionProblem &p, const AttentionBlock &block, int rows_of_tile, int threads) const {
        const float *const from = static_cast<const float *>(p.rel_pos) + block.batch * p.rel_pos_stride_b +
                                  block.head * p.rel_pos_stride_h + block.first_query * p.rel_pos_stride_n;
        make(p, block, rows_of_tile, threads,
             [=](int row, int entry) { return load_global<float>(from + row * p.rel_pos_stride_n + entry); });
    }

    // Rows of value(row, entry). By all threads of the block; a barrier must follow. Rows of the cls token, and those
    // past the end, get zeros.
    template <class F>
    MVIT_DEVICE void make(const AttentionProblem &p, const AttentionBlock &block, int rows_of_tile, int threads,
                          const F &value_of) const {
        const float unit = 1 / score_scale(p);
        const int lane = lane_index(), first_h = int(p.grid_k.t), first_w = first_h + int(p.grid_k.h);
        const int entries = first_w + int(p.grid_k.w);
        constexpr int kOfLane = int(kMaxProductEntries) / kWarp + 1;
        for (int row = warp_index(); row < rows_of_tile; row += threads / kWarp) {
            const bool biased = row < block.queries && block.first_query + row >= (p.has_cls ? 1 : 0);
            float value[kOfLane];
            bool is_nan = false, excludes = false;
            MVIT_UNROLL
            for (int i = 0; i < kOfLane; ++i) {
                const int entry = lane + kWarp * i;
                value[i] = biased && entry < entries ? value_of(row, entry) : 0;
                is_nan = is_nan || !(value[i] < -negative_infinity());
                excludes = excludes || value[i] == negative_infinity();
            }
            is_nan = any(is_nan);
            if (any(excludes) && !p.has_cls) {
                // Some key is left if each axis has an entry that leaves one.
                bool leaves[3] = {};
                MVIT_UNROLL
                for (int i = 0; i < kOfLane; ++i) {
                    const int entry = lane + kWarp * i;
                    const bool finite = entry < entries && value[i] != negative_infinity();
                    leaves[0] = leaves[0] || (finite && entry < first_h);
                    leaves[1] = leaves[1] || (finite && entry >= first_h && entry < first_w);
                    leaves[2] = leaves[2] || (finite && entry >= first_w);
                }
                MVIT_UNROLL
                for (int axis = 0; axis < 3; ++axis)
                    is_nan = !any(leaves[axis]) || is_nan;
            }
            MVIT_UNROLL
            for (int i = 0; i < kOfLane; ++i) {
                const int entry = lane + kWarp * i;
                if (entry >= entries)
                    continue;
                const float x = maximum(maximum(value[i], -1e30f) * unit, -1e38f);
                float rounded, none;
                const uint32_t bits = pack<bf16>(is_nan ? negative_infinity() * 0 : x, 0);
                unpack<bf16>(bits, rounded, none);
                const Shared at = rows + Shared(row * pitch + 2 * entry);
                store_shared(at, uint16_t(bits));
                store_shared(at + Shared(2 * entries), uint16_t(pack<bf16>(x - rounded, 0)));
            }
            for (int entry = 2 * entries + lane; entry < depth; entry += kWarp)
                store_shared(rows + Shared(row * pitch + 2 * entry), uint16_t(0));
        }
        // How far (t, h, w) of a key is from that of the same place in the next tile.
        if (thread_index() == 0) {
            const uint32_t step = uint32_t(block.keys_of_tile);
            const uint32_t width = uint32_t(p.grid_k.w), height = uint32_t(p.grid_k.h);
            store_shared(end_of_row(rows, 0),
                         Vector16{{step / width / height, step / width % height, step % width, 0}});
        }
    }

    // Of the keys [first, first + count): by all threads; a barrier must follow.
    MVIT_DEVICE void first_tile(const AttentionProblem &p, int64_t first, int count) const {
        const int key = thread_index();
        if (key >= count)
            return;
        const Shared row = keys + Shared(key * pitch);
        for (int chunk = 0; chunk < depth / 8; ++chunk)
            store_shared(row + Shared(16 * chunk), Vector16{});
        const int64_t number = first + key - (p.has_cls ? 1 : 0);
        const uint32_t i = uint32_t(number), width = uint32_t(p.grid_k.w), height = uint32_t(p.grid_k.h);
        Vector16 place = {{i / width / height, i / width % height, i % width, 0}};
        if (number < 0) // cls lies before the grid, one before (0, 0, 0)
            place = {{uint32_t(-1), height - 1, width - 1, 0}};
        store_shared(end_of_row(keys, key), place);
        write(p, row, place, 0x3f80);
    }

    // Of the next keys: the ones of the last move. Two barriers, one before and one behind.
    MVIT_DEVICE void next_tile(const AttentionProblem &p, int count) const {
        const int key = thread_index();
        if (key >= count)
            return;
        const Shared row = keys + Shared(key * pitch), end = end_of_row(keys, key);
        Vector16 place = load_shared<Vector16>(end);
        const Vector16 step = load_shared<Vector16>(end_of_row(rows, 0));
        write(p, row, place, 0);
        const uint32_t height = uint32_t(p.grid_k.h), width = uint32_t(p.grid_k.w);
        place.word[2] += step.word[2];
        uint32_t carry = place.word[2] >= width;
        place.word[2] -= carry ? width : 0;
        place.word[1] += step.word[1] + carry;
        carry = place.word[1] >= height;
        place.word[1] -= carry ? height : 0;
        place.word[0] += step.word[0] + carry;
        store_shared(end, place);
        write(p, row, place, 0x3f80);
    }

    // The lane's row of the A operand of 16 queries, and of the B operand of 16 keys.
    MVIT_DEVICE Shared row_of_lane(int first, int lane) const {
        return rows + Shared((first + lane % 16) * pitch + lane / 16 * 16);
    }
    MVIT_DEVICE Shared key_of_lane(int lane) const {
        return keys + Shared((lane / 16 * 8 + lane % 8) * pitch + lane / 8 % 2 * 16);
    }

private:
    MVIT_DEVICE Shared end_of_row(Shared matrix, int row) const { return matrix + Shared((row + 1) * pitch - 16); }

    // Keys before the grid, and after it, have no ones.
    MVIT_DEVICE void write(const AttentionProblem &p, Shared row, const Vector16 &place, uint16_t value) const {
        if (place.word[0] >= uint32_t(p.grid_k.t))
            return;
        const uint32_t first_h = uint32_t(p.grid_k.t), first_w = first_h + uint32_t(p.grid_k.h);
        const uint32_t entries = first_w + uint32_t(p.grid_k.w);
        const uint32_t entry[3] = {place.word[0], first_h + place.word[1], first_w + place.word[2]};
        MVIT_UNROLL
        for (int axis = 0; axis < 3; ++axis) {
            store_shared(row + 2 * entry[axis], value);
            store_shared(row + 2 * (entry[axis] + entries), value);
        }
    }
};

} // namespace mvit::cuda
