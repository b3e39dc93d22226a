// The shared memory that the launchers ask for, by kernel: a function of shapes, nothing is run.
#include "common/attention_backward_tiles.h"
#include "common/limits.h"
#include "common/pooled_query.h"
#include "common/rel_pos_backward_tiles.h"
#include "emulation/token_arguments.h"

#include <map>

namespace mvit::emulation {
namespace {

namespace py = pybind11;
using Bytes = std::map<std::string, int64_t>; // of a block

// sizes: B, H, Nq, Nk, D. A grid of keys of zeros: no relative position. `branches` are those of q, k and v, q's first
// if `pools_q`.
Bytes shared_bytes(const std::string &dtype, bool tf32, const std::array<int64_t, 5> &sizes,
                   const std::array<int64_t, 3> &grid_k, bool has_cls, bool pools_q,
                   const std::vector<py::dict> &branches) {
    static char there; // nobody reads it
    AttentionProblem a = {};
    a.dtype = dtype_of(dtype);
    a.tf32 = tf32;
    a.batch = sizes[0], a.heads = sizes[1], a.queries = sizes[2], a.keys = sizes[3], a.head_dim = sizes[4];
    a.grid_k = size3(grid_k);
    a.rel_pos = grid_k[0] > 0 ? &there : nullptr;
    const bool half = a.dtype != DType::f32;
    const int dim = attention_dim(a.head_dim);
    const int64_t entries = rel_pos_entries(a);
    Bytes of;
    const auto add = [&](const std::string &kernel, int64_t bytes) { of[kernel] = max(of[kernel], bytes); };
    add(half ? "pooling_attention" : "pooling_attention_float32", attention_shared_bytes(a));
    if (entries <= max_rel_pos_row_backward(a.dtype, a.head_dim)) { // else the backend says that it can't
        add(half ? "attention_grad_q" : "attention_grad_q_float32",
            half ? grad_q_shared_bytes(dim, entries) : grad_q_float32_shared_bytes(dim, entries));
        add(half ? "attention_grad_kv" : "attention_grad_kv_float32",
            half ? grad_kv_shared_bytes(dim, entries) : grad_kv_float32_shared_bytes(dim, entries));
    }
    add("attention_combine", 0);
    add("attention_grad_sum", 0);
    add("decomposed_rel_pos", 0);
    add("decomposed_rel_pos_backward_q", 0);
    add("decomposed_rel_pos_backward_tables", kRelPosTableSharedBytes);
    add("decomposed_rel_pos_backward_sums", kSumSharedBytes);

    PoolBackwardProblem backward = {};
    backward.forward = pool_of(dtype, a.batch, a.heads, a.head_dim, has_cls, branches);
    for (PoolBranchGradients &g : backward.gradients)
        g.x = g.weight.data = g.norm_weight.data = g.norm_bias.data = &there;
    const PoolProblem &p = backward.forward;
    const PoolPlan forward = pool_plan(p);
    const PoolBackwardPlan plan = pool_backward_plan(backward, nullptr);
    const PoolTransposedPlan transposed = pool_transposed_plan(plan);
    for (int i = 0; i < p.branches; ++i) {
        const PoolBranch &b = p.branch[i];
        if (forward.tiling[i].blocks)
            add("pool3d_norm", forward.tiling[i].shared_bytes);
        if (forward.strip_blocks[i])
            add("pool3d_norm_strips", pool_strip_shared_bytes(b));
        if (plan.branch[i].output_tiles)
            add("pool3d_norm_backward_outputs", pool_output_tile_bytes(plan.branch[i].tiling));
        if (plan.branch[i].output_strips)
            add("pool3d_norm_backward_output_strips", pool_output_strip_bytes(b));
        if (transposed.plan.tiling[i].blocks)
            add("pool3d_norm_backward_inputs", transposed.plan.tiling[i].shared_bytes);
        if (plan.branch[i].input_strips)
            add("pool3d_norm_backward_input_strips", pool_strip_shared_bytes(b));
        if (plan.branch[i].weight_tile_blocks)
            add("pool3d_norm_backward_weight_tiles", plan.branch[i].weight_tiling.shared_bytes);
        if (plan.branch[i].weight_blocks)
            add("pool3d_norm_backward_weight", kPoolWeightSharedBytes);
        if (plan.branch[i].parameter_blocks)
            add("pool3d_norm_backward_parameters", kSumSharedBytes);
    }
    if (pools_q && half) {
        PooledQueryProblem q = {};
        q.attention = a;
        q.pool = p;
        q.table_t.data = a.rel_pos;
        if (!pooled_query_not_supported(q))
            add("pooled_query_attention", pooled_query_shared_bytes(pooled_query_forward(q)));
    }
    return of;
}

} // namespace

void add_shared_memory(py::module_ &m) { m.def("shared_bytes", &shared_bytes); }

} // namespace mvit::emulation
