// ldmatrix and mma.sync as the PTX ISA manual defines them, for all lanes of a warp at once.
#pragma once

#include <cstdint>

namespace mvit::emulation {

// Products of 16-bit numbers are exact in float32. The hardware adds them in an order and with an alignment that NVIDIA
// does not publish; here each entry of D is summed in float64 and rounded once.
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool is_bf16);
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void ldmatrix_x4(uint32_t (&r)[4], uint32_t row, bool transposed);

} // namespace mvit::emulation
