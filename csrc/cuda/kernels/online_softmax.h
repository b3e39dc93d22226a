// The online softmax of scores that lie in a warp as the accumulators of a tensor-core product: a thread has two rows,
// lane / 4 and lane / 4 + 8, and of each a fourth of the columns.
//
// The probability of a score s is 2^(s * unit - shift). Any shift will do that keeps the largest probability of a row
// from overflowing and from vanishing, so it is the row's maximum when it is set, and is set again only where a score
// has come that lies kSlack above it: seldom after the first tile, and sums and outputs are rescaled only then.
#pragma once

#include "cuda/primitives/numbers.h"
#include "cuda/primitives/sync.h"

namespace mvit::cuda {

// The two rows of a thread; `top` and `sum` are of this thread's columns alone.
struct OnlineSoftmax {
    static constexpr float kSlack = 8; // a probability is at most 2^8, which float16 holds

    float top[2], shift[2], sum[2];

    // With the scores of the first tile.
    template <int kColumns> MVIT_DEVICE void begin(const float (&s)[kColumns][4], float unit) {
        MVIT_UNROLL
        for (int i = 0; i < 2; ++i) {
            // Finite for a row of -inf alone: 2^(-inf + lowest) is 0, 2^(-inf + inf) would be NaN.
            top[i] = -1e38f * fast_exp2(-fast_log2(maximum(unit, 1)));
            take(s, i);
            raise(i);
            shift[i] = top[i] * unit;
            sum[i] = 0;
        }
    }

    // With those of a later one.
    template <int kColumns, int kOutputs>
    MVIT_DEVICE void go_on(const float (&s)[kColumns][4], float unit, float (&o)[kOutputs][4]) {
        bool exceeds = false;
        MVIT_UNROLL
        for (int i = 0; i < 2; ++i) {
            take(s, i);
            exceeds = exceeds || top[i] * unit - shift[i] > kSlack;
        }
        if (any(exceeds)) {
            float shrink[2];
            MVIT_UNROLL
            for (int i = 0; i < 2; ++i) {
                raise(i);
                shrink[i] = fast_exp2(multiply_add(-top[i], unit, shift[i]));
                shift[i] = top[i] * unit;
                sum[i] *= shrink[i];
            }
            MVIT_UNROLL
            for (int d = 0; d < kOutputs; ++d) {
                MVIT_UNROLL
                for (int i = 0; i < 4; ++i)
                    o[d][i] *= shrink[i / 2];
            }
        }
    }

    // Four scores become probabilities.
    MVIT_DEVICE void exponentials(float (&s)[4], float unit) {
        MVIT_UNROLL
        for (int i = 0; i < 4; ++i)
            s[i] = fast_exp2(s[i] * unit - shift[i / 2]);
        sum[0] += s[0] + s[1];
        sum[1] += s[2] + s[3];
    }

    // The sums of whole rows.
    MVIT_DEVICE void finish() {
        MVIT_UNROLL
        for (int i = 0; i < 2; ++i) {
            sum[i] += shuffle_xor(sum[i], 1);
            sum[i] += shuffle_xor(sum[i], 2);
        }
    }

private:
    template <int kColumns> MVIT_DEVICE void take(const float (&s)[kColumns][4], int i) {
        MVIT_UNROLL
        for (int n = 0; n < kColumns; ++n)
            top[i] = maximum(top[i], maximum(s[n][2 * i], s[n][2 * i + 1]));
    }
    MVIT_DEVICE void raise(int i) {
        top[i] = maximum(top[i], shuffle_xor(top[i], 1));
        top[i] = maximum(top[i], shuffle_xor(top[i], 2));
    }
};

} // namespace mvit::cuda
