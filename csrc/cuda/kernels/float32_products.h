// The products of the float32 kernels of attention, of a warp's 16 rows with a walked tile of kColumns rows, in two
// ways: FMAs of the CUDA cores, as IEEE has it, and tensor cores in TF32. Both have the same interface:
//
//   Operand   the warp's 16 rows of a tile in shared memory; kKeep: it may stay in registers
//   scores    s (16 x kColumns) += operand b^T; number i of a lane is in its row slot(i), row(slot(i)) of 16, and
//             column(i)
//   outputs   o (16 x kDim) += s b; s is given in registers and, where kThroughShared, in the warp's rows of shared
//             memory too, kPitch bytes apart
//   scale     o times a factor for each slot
//   for_each  f(row, channel, numbers) for each run of neighbouring channels that a lane has of o
#pragma once

#include "common/attention_backward_tiles.h"
#include "cuda/kernels/tile_product.h"
#include "cuda/primitives/channels.h"
#include "cuda/primitives/sync.h"

#include <type_traits>

namespace mvit::cuda {

// A lane has 4 rows (one in four), and of them one column in eight, or an eighth of the channels.
template <int kDim, int kColumns> struct FmaProducts {
    using Rows = Tile<2 * kDim>; // in 16-bit units
    static constexpr bool kThroughShared = true, kRounds = false;
    static constexpr int kOfRow = kColumns / 8, kScores = 4 * kOfRow; // columns
    static constexpr int kPitch = kColumns == kFloat32Step ? kFloat32Pitch : 4 * attention_probability_pitch(kColumns);
    static constexpr int kOwn = kDim / 8;
    using Outputs = float[4][kOwn];
    static constexpr int kWide = kOwn % 4 == 0 ? 4 : 2; // channels side by side
    using Wide = std::conditional_t<kWide == 4, Float4, Float2>;

    template <bool kKeep> struct Operand {
        Shared rows;
        MVIT_DEVICE explicit Operand(Shared tile) : rows(tile + Shared(16 * warp_index() * Rows::kRowBytes)) {}
    };
    static constexpr int kSlots = 4, kLanesOfRow = 8;
    static MVIT_DEVICE int slot(int i) { return i / kOfRow; }
    static MVIT_DEVICE int row(int slot) { return lane_index() / 8 + 4 * slot; }
    static MVIT_DEVICE int column(int i) { return lane_index() % 8 + i % kOfRow * 8; }

    // Sums of 16 channels, then their sum: one long sum rounds more, and a softmax makes of an error of a large score
    // one of the probability.
    template <bool kKeep> static MVIT_DEVICE void scores(float (&s)[kScores], const Operand<kKeep> &a, Shared b) {
        MVIT_NO_UNROLL
        for (int group = 0; group < Rows::kChunks; group += Rows::kGroup) {
            float sum[kScores] = {};
            MVIT_UNROLL
            for (int chunk = 0; chunk < Rows::kGroup; ++chunk) {
                Float4 x[4], y[kOfRow];
                MVIT_UNROLL
                for (int i = 0; i < 4; ++i)
                    x[i] = load_shared<Float4>(a.rows + Rows::offset(row(i), group + chunk));
                MVIT_UNROLL
                for (int j = 0; j < kOfRow; ++j)
                    y[j] = load_shared<Float4>(b + Rows::offset(column(j), group + chunk));
                MVIT_UNROLL
                for (int c = 0; c < 4; ++c) {
                    MVIT_UNROLL
                    for (int i = 0; i < kScores; ++i)
                        sum[i] = multiply_add(x[i / kOfRow].value[c], y[i % kOfRow].value[c], sum[i]);
                }
                MVIT_UNROLL
                for (int i = 0; i < kScores && chunk % 4 == 3; ++i) {
                    s[i] += sum[i];
                    sum[i] = 0;
                }
            }
        }
    }

    static MVIT_DEVICE void outputs(Outputs &o, const float (&)[kScores], Shared shared, Shared b) {
        MVIT_NO_UNROLL
        for (int group = 0; group < kColumns; group += 8) {
            MVIT_UNROLL
            for (int half = 0; half < 8; half += 4) {
                Float4 e[4];
                MVIT_UNROLL
                for (int i = 0; i < 4; ++i)
                    e[i] = load_shared<Float4>(shared + Shared(row(i) * kPitch + 4 * (group + half)));
                MVIT_UNROLL
                for (int key = 0; key < 4; ++key) {
                    MVIT_UNROLL
                    for (int m = 0; m < kOwn / kWide; ++m) {
                        const int channel = (lane_index() % 8 + 8 * m) * kWide;
                        const Wide value = load_shared<Wide>(b + Rows::offset(group + half + key, channel / 4) +
                                                             Shared(channel % 4 * 4));
                        MVIT_UNROLL
                        for (int i = 0; i < 4; ++i) {
                            MVIT_UNROLL
                            for (int c = 0; c < kWide; ++c)
                                o[i][m * kWide + c] =
                                    multiply_add(e[i].value[key], value.value[c], o[i][m * kWide + c]);
                        }
                    }
                }
            }
        }
    }

    static MVIT_DEVICE void scale(Outputs &o, const float (&factor)[kSlots]) {
        MVIT_UNROLL
        for (int i = 0; i < 4; ++i) {
            MVIT_UNROLL
            for (int c = 0; c < kOwn; ++c)
                o[i][c] *= factor[i];
        }
    }

    template <class F> static MVIT_DEVICE void for_each(const Outputs &o, const F &f) {
        MVIT_UNROLL
        for (int i = 0; i < 4; ++i) {
            MVIT_UNROLL
            for (int m = 0; m < kOwn / kWide; ++m) {
                Wide value;
                MVIT_UNROLL
                for (int c = 0; c < kWide; ++c)
                    value.value[c] = o[i][m * kWide + c];
                f(row(i), (lane_index() % 8 + 8 * m) * kWide, value);
            }
        }
    }
};

// mma.m16n8k8. S becomes the A operand of the second product in place: a lane has columns 2c and 2c + 1 of S, c = lane
// % 4, and needs columns c and c + 4 of A, so the rows of b that are each 8 columns are taken in an order in which the
// two are the same. The order is also such that loads of two rows of b at a time, for four lanes and four pairs of
// channels, meet no bank twice. The channels of two neighbouring accumulators of o alternate, so that one load of 8
// bytes serves two products and a lane ends with 4 neighbouring channels.
template <int kDim, int kColumns> struct Tf32Products {
    using Rows = Tile<2 * kDim>;
    static constexpr bool kThroughShared = false, kRounds = true;
    static constexpr int kScores = kColumns / 2, kPitch = kFloat32Pitch;
    using Outputs = float[kDim / 8][4];

    // Which of 8 rows of b is column `column` of S.
    static MVIT_DEVICE int row_of_column(int column) {
        return Rows::kGroup == 8 ? column : column / 4 * 4 + column % 2 * 2 + column / 2 % 2;
    }

    template <bool kKeep> struct Operand {
        uint32_t fragment[kKeep ? kDim / 8 : 1][4];
        Shared rows;
        MVIT_DEVICE explicit Operand(Shared tile) : rows(tile + Shared(16 * warp_index() * Rows::kRowBytes)) {
            if constexpr (kKeep) {
                MVIT_UNROLL
                for (int d = 0; d < kDim / 8; ++d)
                    load(d, fragment[d]);
            }
        }
        // 8 rows of 4 float32 are to ldmatrix 8 rows of 8 16-bit numbers.
        MVIT_DEVICE void load(int d, uint32_t (&a)[4]) const {
            ldmatrix_x4(a, rows + rows_by_depth<2 * kDim>(lane_index())(d, 0));
            MVIT_UNROLL
            for (int i = 0; i < 4; ++i)
                a[i] = tf32(a[i]);
        }
        MVIT_DEVICE void get(int d, uint32_t (&a)[4]) const {
            if constexpr (kKeep) {
                MVIT_UNROLL
                for (int i = 0; i < 4; ++i)
                    a[i] = fragment[d][i];
            } else {
                load(d, a);
            }
        }
    };
    static constexpr int kSlots = 2, kLanesOfRow = 4;
    static MVIT_DEVICE int slot(int i) { return i % 4 / 2; }
    static MVIT_DEVICE int row(int slot) { return lane_index() / 4 + 8 * slot; }
    static MVIT_DEVICE int column(int i) { return row_of_column(2 * (lane_index() % 4) + i % 2) + i / 4 * 8; }

    template <bool kKeep> static MVIT_DEVICE void scores(float (&s)[kScores], const Operand<kKeep> &operand, Shared b) {
        const LaneRow<2 * kDim> row(lane_index() / 16 * 8 + row_of_column(lane_index() % 8), lane_index() / 8 % 2);
        float d[kColumns / 8][4];
        MVIT_UNROLL
        for (int i = 0; i < kScores; ++i)
            d[i / 4][i % 4] = s[i];
        MVIT_UNROLL
        for (int step = 0; step < kDim / 8; ++step) {
            uint32_t a[4];
            operand.get(step, a);
            MVIT_UNROLL
            for (int n = 0; n < kColumns / 16; ++n) {
                uint32_t rows[4];
                ldmatrix_x4(rows, b + row(step, n));
                mma_m16n8k8_tf32(d[2 * n], a, rows[0], rows[1]);
                mma_m16n8k8_tf32(d[2 * n + 1], a, rows[2], rows[3]);
            }
        }
        MVIT_UNROLL
        for (int i = 0; i < kScores; ++i)
            s[i] = d[i / 4][i % 4];
    }

    static MVIT_DEVICE void outputs(Outputs &o, const float (&s)[kScores], Shared, Shared b) {
        // Columns 2 * (lane % 4) + half; of each 8 pairs of channels that of lane / 4.
        constexpr int kPlaces = Rows::kGroup / 4; // that are not constants apart
        const int lane = lane_index();
        Shared at[2][kPlaces];
        MVIT_UNROLL
        for (int half = 0; half < 2; ++half) {
            MVIT_UNROLL
            for (int place = 0; place < kPlaces; ++place)
                at[half][place] =
                    b + Rows::offset(row_of_column(2 * (lane % 4) + half), 4 * place + lane / 8) + lane / 4 % 2 * 8;
        }
        MVIT_UNROLL
        for (int n = 0; n < kColumns / 8; ++n) {
            const uint32_t a[4] = {tf32(s[4 * n]), tf32(s[4 * n + 2]), tf32(s[4 * n + 1]), tf32(s[4 * n + 3])};
            MVIT_UNROLL
            for (int d = 0; d < kDim / 8; d += 2) {
                Vector8 value[2];
                MVIT_UNROLL
                for (int half = 0; half < 2; ++half)
                    value[half] =
                        load_shared<Vector8>(at[half][d / 2 % kPlaces] +
                                             Shared(d / 2 / kPlaces * Rows::kGroup * 16 + 8 * n * Rows::kRowBytes));
                MVIT_UNROLL
                for (int i = 0; i < 2; ++i)
                    mma_m16n8k8_tf32(o[d + i], a, value[0].word[i], value[1].word[i]);
            }
        }
    }

    static MVIT_DEVICE void scale(Outputs &o, const float (&factor)[kSlots]) {
        MVIT_UNROLL
        for (int d = 0; d < kDim / 8; ++d) {
            MVIT_UNROLL
            for (int i = 0; i < 4; ++i)
                o[d][i] *= factor[i / 2];
        }
    }

    template <class F> static MVIT_DEVICE void for_each(const Outputs &o, const F &f) {
        MVIT_UNROLL
        for (int i = 0; i < 2; ++i) {
            MVIT_UNROLL
            for (int d = 0; d < kDim / 8; d += 2) {
                Float4 value;
                MVIT_UNROLL
                for (int c = 0; c < 4; ++c)
                    value.value[c] = o[d + c % 2][2 * i + c / 2];
                f(row(i), 8 * d + 4 * (lane_index() % 4), value);
            }
        }
    }
};

template <int kDim, bool kTf32, int kColumns = kFloat32Step>
using Float32Products = std::conditional_t<kTf32, Tf32Products<kDim, kColumns>, FmaProducts<kDim, kColumns>>;

// To TF32, in place, of what a thread has copied itself.
MVIT_DEVICE Vector16 rounded_to_tf32(Vector16 x) {
    MVIT_UNROLL
    for (int i = 0; i < 4; ++i)
        x.word[i] = tf32(x.word[i]);
    return x;
}

} // namespace mvit::cuda
