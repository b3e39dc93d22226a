// The online softmax of scores that lie in a warp as the accumulators of a tensor-core product: a thread has two rows,
// lane / 4 and lane / 4 + 8, and of each a fourth of the columns.
#pragma once

#include "cuda/primitives/numbers.h"
#include "cuda/primitives/sync.h"

namespace mvit::cuda {

// The maximum and sum so far of a thread's two rows; `sum` is of this thread's columns alone.
struct OnlineSoftmax {
    float top[2], sum[2];

    MVIT_DEVICE OnlineSoftmax() : top{negative_infinity(), negative_infinity()}, sum{0, 0} {}

    // Raises the maxima, and makes what was summed before smaller accordingly. Afterwards the probability of a score s
    // of row i is 2^(s * unit - shift[i]).
    template <int kColumns, int kOutputs>
    MVIT_DEVICE void raise(const float (&s)[kColumns][4], float unit, float (&o)[kOutputs][4], float (&shift)[2]) {
        float shrink[2];
        bool raised = false;
        MVIT_UNROLL
        for (int i = 0; i < 2; ++i) {
            float most = top[i];
            MVIT_UNROLL
            for (int n = 0; n < kColumns; ++n)
                most = maximum(most, maximum(s[n][2 * i], s[n][2 * i + 1]));
            most = maximum(most, shuffle_xor(most, 1));
            most = maximum(most, shuffle_xor(most, 2));
            raised = raised || most != top[i];
            // A row of -inf alone so far: 2^(-inf - 0) is 0, 2^(-inf + inf) would be NaN.
            shift[i] = most == negative_infinity() ? 0 : most * unit;
            shrink[i] = fast_exp2(top[i] * unit - shift[i]);
            top[i] = most;
        }
        if (any(raised)) {
            MVIT_UNROLL
            for (int i = 0; i < 2; ++i)
                sum[i] *= shrink[i];
            MVIT_UNROLL
            for (int d = 0; d < kOutputs; ++d) {
                MVIT_UNROLL
                for (int i = 0; i < 4; ++i)
                    o[d][i] *= shrink[i / 2];
            }
        }
    }

    // Four scores become probabilities.
    MVIT_DEVICE void exponentials(float (&s)[4], float unit, const float (&shift)[2]) {
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
};

} // namespace mvit::cuda
