#include "emulation/matrix.h"
#include "emulation/block.h"
#include "emulation/numbers.h"

#include <algorithm>

namespace mvit::emulation {
namespace {

struct Product {
    float *d;
    const uint32_t *a;
    uint32_t b[2];
};

template <bool kBf16> float half_of(uint32_t pair, int high) {
    const uint16_t bits = uint16_t(high ? pair >> 16 : pair);
    return kBf16 ? bf16_value(bits) : f16_value(bits);
}

// The matrices are gathered from the lanes' registers, multiplied, and D is scattered back.
template <int kDepth> void multiply(void *const *lanes, const float (&a)[16][kDepth], const float (&b)[kDepth][8]) {
    double d[16][8] = {};
    for (int row = 0; row < 16; ++row)
        for (int k = 0; k < kDepth; ++k)
            for (int column = 0; column < 8; ++column)
                d[row][column] += double(a[row][k]) * double(b[k][column]);
    for (int lane = 0; lane < kWarp; ++lane) {
        float *const out = static_cast<Product *>(lanes[lane])->d;
        const int g = lane / 4, c = 2 * (lane % 4);
        for (int i = 0; i < 4; ++i)
            out[i] = float(double(out[i]) + d[g + 8 * (i / 2)][c + i % 2]);
    }
}

template <bool kBf16> void mma_16(void *const *lanes) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < kWarp; ++lane) {
        const Product &p = *static_cast<Product *>(lanes[lane]);
        const int g = lane / 4, c = 2 * (lane % 4);
        for (int i = 0; i < 8; ++i)
            a[g + 8 * (i / 2 % 2)][c + i % 2 + 8 * (i / 4)] = half_of<kBf16>(p.a[i / 2], i % 2);
        for (int i = 0; i < 4; ++i)
            b[c + i % 2 + 8 * (i / 2)][g] = half_of<kBf16>(p.b[i / 2], i % 2);
    }
    multiply<16>(lanes, a, b);
}

void mma_tf32(void *const *lanes) {
    const auto tf32 = [](uint32_t bits) { return float_of(bits & 0xffffe000u); };
    float a[16][8], b[8][8];
    for (int lane = 0; lane < kWarp; ++lane) {
        const Product &p = *static_cast<Product *>(lanes[lane]);
        const int g = lane / 4, c = lane % 4;
        for (int i = 0; i < 4; ++i)
            a[g + 8 * (i % 2)][c + 4 * (i / 2)] = tf32(p.a[i]);
        for (int i = 0; i < 2; ++i)
            b[c + 4 * i][g] = tf32(p.b[i]);
    }
    multiply<8>(lanes, a, b);
}

struct Load {
    uint32_t *r;
    uint16_t row[8];
    uint32_t address;
    bool transposed;
};

void distribute(void *const *lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
        int used[8] = {};
        for (int row = 0; row < 8; ++row)
            ++used[static_cast<Load *>(lanes[8 * matrix + row])->address / 16 % 8];
        note_bank_conflicts(*std::max_element(used, used + 8));
        for (int lane = 0; lane < kWarp; ++lane) {
            Load &mine = *static_cast<Load *>(lanes[lane]);
            const int g = lane / 4, c = 2 * (lane % 4);
            const auto entry = [&](int row, int column) -> uint32_t {
                return static_cast<Load *>(lanes[8 * matrix + row])->row[column];
            };
            mine.r[matrix] =
                mine.transposed ? entry(c, g) | entry(c + 1, g) << 16 : entry(g, c) | entry(g, c + 1) << 16;
        }
    }
}

} // namespace

void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool is_bf16) {
    Product operands = {d, a, {b0, b1}};
    together(is_bf16 ? "mma.m16n8k16.bf16" : "mma.m16n8k16.f16", &operands, is_bf16 ? mma_16<true> : mma_16<false>);
}

void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    Product operands = {d, a, {b0, b1}};
    together("mma.m16n8k8.tf32", &operands, mma_tf32);
}

void ldmatrix_x4(uint32_t (&r)[4], uint32_t row, bool transposed) {
    Load operands = {r, {}, row, transposed};
    read_shared(row, operands.row, 16);
    together(transposed ? "ldmatrix.x4.trans" : "ldmatrix.x4", &operands, distribute);
}

} // namespace mvit::emulation
