// Arithmetic on shapes that the kernels and the bindings share.
//
// The functions are static: these headers are compiled once per instruction-set level, and an inline function with
// external linkage would be merged by the linker into one copy that may use instructions the running CPU lacks.
#pragma once

#include "common/problem.h"

namespace mvit {

static constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
static constexpr int64_t clamp(int64_t a, int64_t low, int64_t high) { return max(low, min(a, high)); }

static constexpr int64_t volume(Size3 size) { return size.t * size.h * size.w; }

// Output length of one pooled axis; 0 where not even one window fits.
static constexpr int64_t pooled(int64_t n, int64_t kernel, int64_t stride, int64_t padding) {
    return n + 2 * padding < kernel ? 0 : (n + 2 * padding - kernel) / stride + 1;
}

static constexpr Size3 pooled(Size3 n, Size3 kernel, Size3 stride, Size3 padding) {
    return {pooled(n.t, kernel.t, stride.t, padding.t), pooled(n.h, kernel.h, stride.h, padding.h),
            pooled(n.w, kernel.w, stride.w, padding.w)};
}

// The taps [first, last) of the window of output o that lie inside an axis of n inputs.
struct Taps {
    int64_t first, last;
};
static constexpr Taps taps_inside(int64_t o, int64_t n, int64_t kernel, int64_t stride, int64_t padding) {
    const int64_t start = o * stride - padding;
    return {clamp(-start, 0, kernel), clamp(n - start, 0, kernel)};
}

// The outputs [first, last) of an axis whose whole window lies inside it.
static constexpr Taps outputs_inside(int64_t n, int64_t outputs, int64_t kernel, int64_t stride, int64_t padding) {
    const int64_t last = n + padding < kernel ? 0 : min(outputs, (n + padding - kernel) / stride + 1);
    const int64_t first = min(ceil_div(padding, stride), last);
    return {first, last};
}

} // namespace mvit
