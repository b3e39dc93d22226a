// The products of the float32 kernels of attention by themselves: a warp, its rows and a tile, matrices in and out.
#include "cuda/kernels/float32_products.h"
#include "emulation/block.h"
#include "emulation/module.h"

#include <utility>
#include <vector>

namespace mvit::cuda {
namespace {

using Numbers = std::vector<float>; // a matrix, row by row

template <int kDim> void copy_to_tile(Shared tile, const Numbers &rows) {
    for (int chunk = lane_index(); chunk < int(rows.size()) / 4; chunk += kWarp) {
        Float4 numbers;
        for (int i = 0; i < 4; ++i)
            numbers.value[i] = rows[size_t(4 * chunk + i)];
        store_shared(tile + Tile<2 * kDim>::offset(chunk / (kDim / 4), chunk % (kDim / 4)), numbers);
    }
}

// a (16, dim), b (columns, dim), p (16, columns): a b^T and p b.
template <int kDim, int kColumns, bool kTf32, bool kKeep>
std::pair<Numbers, Numbers> products(const Numbers &a, const Numbers &b, const Numbers &p, uint64_t seed) {
    using Products = Float32Products<kDim, kTf32, kColumns>;
    constexpr Shared kB = 16 * Tile<2 * kDim>::kRowBytes, kP = kB + kColumns * Tile<2 * kDim>::kRowBytes;
    Numbers scores(16 * kColumns), outputs(16 * kDim);
    emulation::launch(1, kWarp, kP + (Products::kThroughShared ? 16 * Products::kPitch : 0), seed, [&] {
        copy_to_tile<kDim>(0, a);
        copy_to_tile<kDim>(kB, b);
        sync_block();
        const typename Products::template Operand<kKeep> rows(0);
        float s[Products::kScores] = {};
        Products::scores(s, rows, kB);
        for (int i = 0; i < Products::kScores; ++i) {
            const int row = Products::row(Products::slot(i)), column = Products::column(i);
            scores[size_t(row * kColumns + column)] = s[i];
            s[i] = p[size_t(row * kColumns + column)];
            if constexpr (Products::kThroughShared)
                store_shared(kP + Shared(row * Products::kPitch + 4 * column), s[i]);
        }
        sync_warp();
        typename Products::Outputs o = {};
        Products::outputs(o, s, kP, kB);
        Products::for_each(o, [&](int row, int channel, auto value) {
            for (int c = 0; c < int(sizeof(value) / 4); ++c)
                outputs[size_t(row * kDim + channel + c)] = value.value[c];
        });
    });
    return {scores, outputs};
}

template <int kDim, int kColumns>
std::pair<Numbers, Numbers> products_of(bool tf32, bool keep, const Numbers &a, const Numbers &b, const Numbers &p,
                                        uint64_t seed) {
    if (tf32)
        return keep ? products<kDim, kColumns, true, true>(a, b, p, seed)
                    : products<kDim, kColumns, true, false>(a, b, p, seed);
    return keep ? products<kDim, kColumns, false, true>(a, b, p, seed)
                : products<kDim, kColumns, false, false>(a, b, p, seed);
}

} // namespace
} // namespace mvit::cuda

namespace mvit::emulation {

void add_products(pybind11::module_ &m) {
    // Tiles of 16 rows are those of the backward kernels, 32 of the forward's.
    m.def("float32_products", [](int dim, int columns, bool tf32, bool keep, const cuda::Numbers &a,
                                 const cuda::Numbers &b, const cuda::Numbers &p, uint64_t seed) {
        const auto call = [&](auto of_16, auto of_32) {
            return (columns == 16 ? of_16 : of_32)(tf32, keep, a, b, p, seed);
        };
        switch (dim) {
        case 48:
            return call(cuda::products_of<48, 16>, cuda::products_of<48, 32>);
        case 64:
            return call(cuda::products_of<64, 16>, cuda::products_of<64, 32>);
        case 80:
            return call(cuda::products_of<80, 16>, cuda::products_of<80, 32>);
        case 96:
            return call(cuda::products_of<96, 16>, cuda::products_of<96, 32>);
        default:
            return call(cuda::products_of<128, 16>, cuda::products_of<128, 32>);
        }
    });
}

} // namespace mvit::emulation
