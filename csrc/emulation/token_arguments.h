// From tuples, names and dicts to the problems of pooling and relative position, without what goes out.
#pragma once

#include "common/grid.h"
#include "emulation/arguments.h"

#include <vector>

namespace mvit::emulation {

using Named = std::pair<uintptr_t, std::string>; // a parameter: its address and dtype

// One branch as a dict, named like PoolBranch.
inline PoolBranch branch_of(const pybind11::dict &d) {
    using Grid = std::array<int64_t, 3>;
    PoolBranch b = {};
    b.x = reinterpret_cast<const void *>(d["x"].cast<uintptr_t>());
    b.out = reinterpret_cast<void *>(d["out"].cast<uintptr_t>());
    const auto strides = d["strides"].cast<Strides>();
    b.stride_b = strides[0], b.stride_h = strides[1], b.stride_n = strides[2];
    b.in = size3(d["thw"].cast<Grid>());
    b.kernel = size3(d["kernel"].cast<Grid>());
    b.stride = size3(d["stride"].cast<Grid>());
    b.padding = size3(d["padding"].cast<Grid>());
    b.out_grid = pooled(b.in, b.kernel, b.stride, b.padding);
    const auto mode = d["mode"].cast<std::string>();
    b.mode = mode == "conv" ? PoolMode::conv : mode == "avg" ? PoolMode::avg : PoolMode::max;
    b.weight = parameter(d["weight"].cast<Named>());
    b.per_head_weight = d["per_head_weight"].cast<bool>();
    b.norm = !d["norm_eps"].is_none();
    b.norm_eps = b.norm ? d["norm_eps"].cast<double>() : 0;
    b.norm_weight = parameter(d["norm_weight"].cast<Named>());
    b.norm_bias = parameter(d["norm_bias"].cast<Named>());
    return b;
}

inline PoolProblem pool_of(const std::string &dtype, int64_t batch, int64_t heads, int64_t head_dim, bool has_cls,
                           const std::vector<pybind11::dict> &branches) {
    PoolProblem p = {};
    p.dtype = dtype_of(dtype);
    p.batch = batch, p.heads = heads, p.head_dim = head_dim, p.has_cls = has_cls;
    for (const pybind11::dict &branch : branches)
        p.branch[p.branches++] = branch_of(branch);
    return p;
}

inline RelPosProblem rel_pos_of(const std::string &dtype, int64_t batch, int64_t heads, int64_t head_dim, bool has_cls,
                                const std::array<int64_t, 3> &grid_q, const std::array<int64_t, 3> &grid_k, uintptr_t q,
                                const Strides &strides, const std::vector<Named> &tables) {
    RelPosProblem p = {};
    p.dtype = dtype_of(dtype);
    p.batch = batch, p.heads = heads, p.head_dim = head_dim, p.has_cls = has_cls;
    p.grid_q = size3(grid_q), p.grid_k = size3(grid_k);
    p.q = reinterpret_cast<const void *>(q);
    p.q_stride_b = strides[0], p.q_stride_h = strides[1], p.q_stride_n = strides[2];
    p.table_t = parameter(tables.at(0)), p.table_h = parameter(tables.at(1)), p.table_w = parameter(tables.at(2));
    return p;
}

} // namespace mvit::emulation
