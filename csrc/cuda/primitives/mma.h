// Tensor-core products of one warp, and the loads that bring their operands from shared memory.
//
// Every lane of the warp must take part in every call.
#pragma once

#include "cuda/primitives/memory.h"
#include "cuda/primitives/numbers.h"

#ifndef __CUDACC__
#include "emulation/matrix.h"
#endif

namespace mvit::cuda {

// D (16 x 8, float32) += A (16 x 16) B (16 x 8), T = f16 or bf16 (mma.sync.aligned.m16n8k16.row.col).
//
// With g = lane / 4 and c = 2 * (lane % 4), a pair being two numbers in one register:
//   a[0]  A(g, c), A(g, c+1)            a[1]  A(g+8, c), A(g+8, c+1)
//   a[2]  A(g, c+8), A(g, c+9)          a[3]  A(g+8, c+8), A(g+8, c+9)
//   b[0]  B(c, g), B(c+1, g)            b[1]  B(c+8, g), B(c+9, g)
//   d[0], d[1]  D(g, c), D(g, c+1)      d[2], d[3]  D(g+8, c), D(g+8, c+1)
// So a pair of accumulators, packed, is a pair of the A operand of the next product: scores become probabilities in
// place.
template <class T> MVIT_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
    if constexpr (IsBf16<T>::value)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    emulation::mma_m16n8k16(d, a, b0, b1, IsBf16<T>::value);
#endif
}

// D (16 x 8, float32) += A (16 x 8) B (8 x 8) in TF32: the hardware reads the upper 19 bits of each float32.
//
// With g = lane / 4 and c = lane % 4:
//   a[0]  A(g, c)    a[1]  A(g+8, c)    a[2]  A(g, c+4)    a[3]  A(g+8, c+4)
//   b[0]  B(c, g)    b[1]  B(c+4, g)
//   d as in mma_m16n8k16
MVIT_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    emulation::mma_m16n8k8_tf32(d, a, b0, b1);
#endif
}

// Four 8 x 8 matrices of 16-bit numbers. Lane l gives the address of row l % 8 of matrix l / 8: 16 bytes, aligned to
// 16. r[i] of a lane is the pair (lane / 4, 2 * (lane % 4)), (lane / 4, 2 * (lane % 4) + 1) of matrix i.
MVIT_DEVICE void ldmatrix_x4(uint32_t (&r)[4], Shared row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    emulation::ldmatrix_x4(r, row, false);
#endif
}

// The same of the transposed matrices: r[i] is the pair (2 * (lane % 4), lane / 4), (2 * (lane % 4) + 1, lane / 4) of
// matrix i as it lies in shared memory.
MVIT_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], Shared row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    emulation::ldmatrix_x4(r, row, true);
#endif
}

} // namespace mvit::cuda
