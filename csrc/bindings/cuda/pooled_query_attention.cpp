// The op pooled_query_attention, which the CUDA kernels alone have: attention that pools its queries, for inference.
#include "bindings/cuda/run.h"
#include "bindings/problems.h"

namespace mvit::bindings {
namespace {

Tensor pooled_query_attention(Tensor x, std::vector<int64_t> thw, Tensor k, Tensor v, bool has_cls, std::string mode,
                              std::vector<int64_t> kernel, std::vector<int64_t> stride, std::vector<int64_t> padding,
                              std::optional<Tensor> weight, std::optional<Tensor> norm_weight,
                              std::optional<Tensor> norm_bias, std::optional<double> norm_eps,
                              std::optional<Tensor> table_t, std::optional<Tensor> table_h,
                              std::optional<Tensor> table_w, std::vector<int64_t> grid_k, double scale,
                              std::string residual) {
    const char *const op = "pooled_query_attention";
    PoolArguments pooling = {{x},
                             thw,
                             has_cls,
                             {mode},
                             kernel,
                             stride,
                             padding,
                             {weight},
                             {norm_weight},
                             {norm_bias},
                             {norm_eps.value_or(-1)}};
    PooledQueryProblem p = {};
    p.pool = pool_problem(op, pooling);
    const Tensor &queries = pooling.x[0];
    const Size3 grid_q = p.pool.branch[0].out_grid;

    AttentionProblem &a = p.attention;
    a.dtype = p.pool.dtype;
    a.batch = p.pool.batch;
    a.heads = p.pool.heads;
    a.queries = has_cls + volume(grid_q);
    a.head_dim = p.pool.head_dim;
    a.has_cls = has_cls;
    a.residual = residual_of(op, residual);
    a.scale = scale;
    set_keys(op, a, k, v, "x", queries);
    if (table_t || table_h || table_w)
        set_grid_k(op, a, grid_k);
    p.table_t = rel_pos_table(op, "table_t", table_t, grid_q.t, a.grid_k.t, a.head_dim, queries);
    p.table_h = rel_pos_table(op, "table_h", table_h, grid_q.h, a.grid_k.h, a.head_dim, queries);
    p.table_w = rel_pos_table(op, "table_w", table_w, grid_q.w, a.grid_k.w, a.head_dim, queries);

    Tensor out = empty(queries, {a.batch, a.queries, a.heads, a.head_dim}, queries.scalar_type());
    const Tensor lse = empty(queries, {a.batch, a.heads, a.queries}, accumulator_type_of(a.dtype)); // nobody reads it
    a.out = out.mutable_data_ptr();
    a.lse = lse.mutable_data_ptr();
    if (a.batch * a.heads > 0)
        run(op, queries, p);
    return out;
}

} // namespace
} // namespace mvit::bindings

STABLE_TORCH_LIBRARY_IMPL(MVIT_OPS, MVIT_DISPATCH_KEY, m) {
    m.impl("pooled_query_attention", TORCH_BOX(&mvit::bindings::pooled_query_attention));
}
