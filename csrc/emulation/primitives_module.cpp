// Kernels that exist for the tests: each primitive by itself, and a tile product with one planted bug at a time.
#include "cuda/primitives/mma.h"
#include "cuda/primitives/sync.h"
#include "emulation/module.h"

#include <vector>

namespace mvit::cuda {
namespace {

using emulation::launch;
using Words = std::vector<uint32_t>;

template <class T> std::vector<float> mma_16(const Words &a, const Words &b, std::vector<float> d, uint64_t seed) {
    launch(1, kWarp, 0, seed, [&] {
        const size_t lane = size_t(lane_index());
        float mine[4];
        uint32_t operand[4];
        for (size_t i = 0; i < 4; ++i)
            mine[i] = d[4 * lane + i], operand[i] = a[4 * lane + i];
        mma_m16n8k16<T>(mine, operand, b[2 * lane], b[2 * lane + 1]);
        for (size_t i = 0; i < 4; ++i)
            d[4 * lane + i] = mine[i];
    });
    return d;
}

std::vector<float> mma_tf32(const Words &a, const Words &b, std::vector<float> d, uint64_t seed) {
    launch(1, kWarp, 0, seed, [&] {
        const size_t lane = size_t(lane_index());
        float mine[4];
        uint32_t operand[4];
        for (size_t i = 0; i < 4; ++i)
            mine[i] = d[4 * lane + i], operand[i] = a[4 * lane + i];
        mma_m16n8k8_tf32(mine, operand, b[2 * lane], b[2 * lane + 1]);
        for (size_t i = 0; i < 4; ++i)
            d[4 * lane + i] = mine[i];
    });
    return d;
}

// 32 rows of 8 numbers, matrix after matrix -> four registers per lane.
Words ldmatrix(const Words &rows, bool transposed, uint64_t seed) {
    Words out(4 * kWarp);
    launch(1, kWarp, 512, seed, [&] {
        const size_t lane = size_t(lane_index());
        store_shared(Shared(16 * lane),
                     Vector16{{rows[4 * lane], rows[4 * lane + 1], rows[4 * lane + 2], rows[4 * lane + 3]}});
        sync_warp();
        uint32_t r[4];
        if (transposed)
            ldmatrix_x4_trans(r, Shared(16 * lane));
        else
            ldmatrix_x4(r, Shared(16 * lane));
        for (size_t i = 0; i < 4; ++i)
            out[4 * lane + i] = r[i];
    });
    return out;
}

std::vector<float> shuffle(const std::vector<float> &values, int mask, uint64_t seed) {
    std::vector<float> out(values.size());
    launch(1, int(values.size()), 0, seed,
           [&] { out[size_t(thread_index())] = shuffle_xor(values[size_t(thread_index())], mask); });
    return out;
}

std::vector<bool> any_of(const std::vector<bool> &values, uint64_t seed) {
    std::vector<char> out(values.size());
    launch(1, int(values.size()), 0, seed, [&] { out[size_t(thread_index())] = any(values[size_t(thread_index())]); });
    return {out.begin(), out.end()};
}

// The worst bank conflict of ldmatrix over a tile of kDim columns, and whether each chunk has a place of its own.
template <int kDim> std::pair<int, bool> tile_layout() {
    std::vector<int> hits(size_t(16 * Tile<kDim>::kChunks), 0);
    for (int row = 0; row < 16; ++row)
        for (int chunk = 0; chunk < Tile<kDim>::kChunks; ++chunk)
            ++hits.at(Tile<kDim>::offset(row, chunk) / 16);
    launch(1, kWarp, 16 * Tile<kDim>::kRowBytes, 0, [&] {
        const int lane = lane_index();
        for (int i = lane; i < 16 * Tile<kDim>::kChunks; i += kWarp)
            store_shared(Shared(16 * i), Vector16{});
        sync_block();
        for (int chunk = 0; chunk < Tile<kDim>::kChunks; chunk += 2) {
            uint32_t r[4];
            ldmatrix_x4(r, Tile<kDim>::offset(lane % 16, chunk + lane / 16));
        }
    });
    bool each_once = true;
    for (int hit : hits)
        each_once = each_once && hit == 1;
    return {emulation::bank_conflicts(), each_once};
}

std::pair<int, bool> tile_layout_of(int dim) {
    switch (dim) {
    case 16:
        return tile_layout<16>();
    case 48:
        return tile_layout<48>();
    case 64:
        return tile_layout<64>();
    case 80:
        return tile_layout<80>();
    case 96:
        return tile_layout<96>();
    case 112:
        return tile_layout<112>();
    case 128:
        return tile_layout<128>();
    default:
        throw std::invalid_argument("dim " + std::to_string(dim) + ": 16, 48, 64, 80, 96, 112 or 128");
    }
}

enum Bug {
    none,
    no_barrier,      // between the copy and the loads of other warps
    no_wait,         // for the copy
    no_warp_barrier, // between lanes that hand over results through shared memory
    wrong_swizzle,   // of the loads
    tail,            // one row too many is taken for valid
    lost_lane,       // does not take part in the product
    lost_thread,     // does not reach the barrier
    two_barriers,    // half of the threads wait at another one
    misaligned,
    out_of_range,
    overwrite, // of a tile that other warps still read
};

// out (32, 32) float32 = x y^T of bf16 x (rows, 96), y (32, 96), the rows of x from `rows` on being 0; two warps.
void product(uintptr_t x, uintptr_t y, uintptr_t out, int rows, Bug bug, uint64_t seed) {
    constexpr int kDim = 96;
    using Rows = Tile<kDim>;
    constexpr Shared kY = 32 * Rows::kRowBytes;
    const auto *const from_x = reinterpret_cast<const char *>(x), *const from_y = reinterpret_cast<const char *>(y);
    auto *const to = reinterpret_cast<float *>(out);
    launch(1, 64, 2 * kY, seed, [=] {
        const int thread = thread_index(), lane = lane_index(), warp = warp_index();
        for (int i = thread; i < 32 * Rows::kChunks; i += 64) {
            const int row = i / Rows::kChunks, chunk = i % Rows::kChunks;
            const Shared at = Rows::offset(row, chunk) + (bug == misaligned ? 8 : 0);
            cp_async_16(at, from_x + row * Rows::kRowBytes + 16 * chunk, bug == tail ? row <= rows : row < rows);
            cp_async_16(kY + at + (bug == out_of_range ? 16 : 0), from_y + row * Rows::kRowBytes + 16 * chunk, true);
        }
        cp_async_commit();
        if (bug != no_wait)
            cp_async_wait<0>();
        if (bug == lost_thread && thread == 5)
            return;
        if (bug == two_barriers && thread % 2)
            sync_block();
        else if (bug != no_barrier)
            sync_block();
        float d[4][4] = {};
        for (int k = 0; k < kDim / 16; ++k) {
            uint32_t a[4], b[4];
            const auto offset = [&](int row, int chunk) {
                return bug == wrong_swizzle ? Shared(row * Rows::kRowBytes + 16 * chunk) : Rows::offset(row, chunk);
            };
            ldmatrix_x4(a, offset(16 * warp + lane % 16, 2 * k + lane / 16));
            for (int n = 0; n < 2; ++n) {
                ldmatrix_x4(b, kY + offset(16 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
                if (bug == lost_lane && lane == 7)
                    continue;
                mma_m16n8k16<bf16>(d[2 * n], a, b[0], b[1]);
                mma_m16n8k16<bf16>(d[2 * n + 1], a, b[2], b[3]);
            }
        }
        // Through shared memory, each warp over the rows of y it needs no more.
        if (bug != overwrite)
            sync_block();
        const Shared mine = kY + Shared(warp * 16 * 32 * 4);
        for (int n = 0; n < 4; ++n)
            for (int i = 0; i < 4; ++i)
                store_shared(mine + Shared(((lane / 4 + 8 * (i / 2)) * 32 + 8 * n + 2 * (lane % 4) + i % 2) * 4),
                             d[n][i]);
        if (bug != no_warp_barrier)
            sync_warp();
        for (int row = 0; row < 16; ++row)
            store_global(to + (16 * warp + row) * 32 + lane, load_shared<float>(mine + Shared((row * 32 + lane) * 4)));
    });
}

} // namespace
} // namespace mvit::cuda

namespace mvit::emulation {

void add_primitives(pybind11::module_ &m) {
    namespace py = pybind11;
    using namespace cuda;
    m.def("mma_f16", &mma_16<f16>);
    m.def("mma_bf16", &mma_16<bf16>);
    m.def("mma_tf32", &mma_tf32);
    m.def("ldmatrix", &ldmatrix);
    m.def("shuffle_xor", &shuffle);
    m.def("any", &any_of);
    m.def("tile_layout", &tile_layout_of);
    m.def("multiply_add", [](float a, float b, float c) { return multiply_add(a, b, c); });
    m.def("pack_f16", [](float low, float high) { return pack<f16>(low, high); });
    m.def("pack_bf16", [](float low, float high) { return pack<bf16>(low, high); });
    m.def("tf32", [](float x) { return emulation::float_of(tf32(x)); });
    m.def("unpack_f16", [](uint32_t pair) {
        float low, high;
        unpack<f16>(pair, low, high);
        return std::make_pair(low, high);
    });
    m.def("unpack_bf16", [](uint32_t pair) {
        float low, high;
        unpack<bf16>(pair, low, high);
        return std::make_pair(low, high);
    });
    py::enum_<Bug>(m, "Bug")
        .value("none", none)
        .value("no_barrier", no_barrier)
        .value("no_wait", no_wait)
        .value("no_warp_barrier", no_warp_barrier)
        .value("wrong_swizzle", wrong_swizzle)
        .value("tail", tail)
        .value("lost_lane", lost_lane)
        .value("lost_thread", lost_thread)
        .value("two_barriers", two_barriers)
        .value("misaligned", misaligned)
        .value("out_of_range", out_of_range)
        .value("overwrite", overwrite);
    m.def("product", &product);
}

} // namespace mvit::emulation
