// How the kernels divide a problem, as dicts: functions of shapes alone, nothing is run.
#include "common/limits.h"
#include "cuda/launchers.h"
#include "emulation/token_arguments.h"

namespace mvit::emulation {
namespace {

namespace py = pybind11;
using Grid = std::array<int64_t, 3>;

constexpr Parameter kThere = {&kLeastSharedBytes, DType::f32}; // nobody reads it
void *const there = const_cast<int64_t *>(&kLeastSharedBytes);

// sizes: B, H, Nq, Nk, D. A grid of keys of zeros: no relative position.
AttentionProblem attention_of(const std::string &dtype, const std::array<int64_t, 5> &sizes, const Grid &grid_k) {
    AttentionProblem p = {};
    p.dtype = dtype_of(dtype);
    p.batch = sizes[0], p.heads = sizes[1], p.queries = sizes[2], p.keys = sizes[3], p.head_dim = sizes[4];
    p.grid_k = size3(grid_k);
    p.rel_pos = grid_k[0] > 0 ? there : nullptr;
    return p;
}

// With all gradients asked for.
py::dict attention_backward(const std::string &dtype, bool tf32, const std::array<int64_t, 5> &sizes,
                            const Grid &grid_k, int64_t multiprocessors) {
    AttentionBackwardProblem g = {};
    g.forward = attention_of(dtype, sizes, grid_k);
    g.forward.tf32 = tf32;
    g.q = g.k = g.v = there;
    g.rel_pos = g.forward.rel_pos ? there : nullptr;
    const AttentionBackwardPlan plan = attention_backward_plan(g, multiprocessors);
    py::dict d;
    d["tile"] = kBackwardTile;
    d["query_tiles"] = plan.query_tiles, d["key_tiles"] = plan.key_tiles;
    d["parts"] = plan.parts, d["part_tiles"] = plan.part_tiles;
    d["q_blocks"] = grad_q_blocks(g, plan), d["kv_blocks"] = grad_kv_blocks(g, plan);
    d["least_part_tiles"] = kGradKvLeastTiles, d["wanted_blocks"] = kGradKvBlocks;
    d["shared_bytes"] = backward_shared_bytes(g.forward.dtype, g.forward.head_dim, rel_pos_entries(g.forward));
    d["sum_bytes"] = plan.delta_sums - plan.k_sums, d["scratch_bytes"] = plan.total_bytes;
    d["key_parts"] = plan.key_parts, d["key_part_tiles"] = plan.key_part_tiles;
    d["key_sum_bytes"] = plan.total_bytes - plan.delta_sums;
    const auto cost = [&](int64_t tiles, int64_t parts) {
        return grad_q_cost(g.forward, grad_q_blocks(g, plan) / plan.key_parts * parts, tiles, parts, multiprocessors);
    };
    d["cost"] = cost(plan.key_part_tiles, plan.key_parts), d["cost_of_one_part"] = cost(plan.key_tiles, 1);
    return d;
}

py::dict pooled_query(const std::string &dtype, const std::array<int64_t, 5> &sizes, const Grid &grid_k,
                      const Grid &kernel) {
    PooledQueryProblem p = {};
    p.attention = attention_of(dtype, sizes, grid_k);
    p.table_t = p.attention.rel_pos ? kThere : Parameter{};
    p.pool.branches = 1;
    p.pool.branch[0].kernel = size3(kernel);
    const PooledQueryForward f = pooled_query_forward(p);
    const char *const reason = pooled_query_not_supported(p);
    py::dict d;
    d["reason"] = reason ? py::object(py::str(reason)) : py::object(py::none());
    d["rows"] = attention_tile(f.attention.p).rows, d["blocks"] = attention_blocks(f.attention);
    d["keys_of_split"] = f.attention.keys_of_split;
    d["shared_bytes"] = pooled_query_shared_bytes(f);
    return d;
}

py::dict rel_pos(int64_t batch, int64_t heads, int64_t head_dim, bool has_cls, const Grid &grid_q, const Grid &grid_k) {
    RelPosBackwardProblem g = {};
    g.forward = rel_pos_of("bfloat16", batch, heads, head_dim, has_cls, grid_q, grid_k, 0, {},
                           {{0, "float32"}, {0, "float32"}, {0, "float32"}});
    g.q = there;
    g.table_t = g.table_h = g.table_w = {there, DType::f32};
    const RelPosBackwardPlan plan = rel_pos_backward_plan(g, nullptr);
    py::list axes;
    for (const RelPosAxis &axis : plan.axis) {
        py::dict d;
        d["entry"] = axis.entry, d["of_index"] = axis.of_index, d["parts"] = axis.parts;
        d["blocks"] = axis.blocks, d["sum_blocks"] = axis.sum_blocks;
        axes.append(d);
    }
    py::dict d;
    d["axes"] = axes;
    d["blocks"] = rel_pos_blocks(g.forward), d["threads"] = kRelPosThreads;
    d["strips"] = plan.strips, d["strip"] = kRelPosStrip, d["strips_of_block"] = kRelPosGroups * kRelPosPasses;
    d["q_blocks"] = plan.q_blocks, d["scratch_bytes"] = plan.bytes;
    return d;
}

} // namespace

void add_plans(py::module_ &m) {
    m.def("plan_of_attention_backward", &attention_backward);
    m.def("plan_of_pooled_query_attention", &pooled_query);
    m.def("plan_of_rel_pos", &rel_pos);
}

} // namespace mvit::emulation
