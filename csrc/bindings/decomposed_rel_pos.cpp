// The ops decomposed_rel_pos and decomposed_rel_pos_backward.
#include "bindings/problems.h"

#include <tuple>

namespace mvit::bindings {

Parameter rel_pos_table(const char *op, const char *argument, std::optional<Tensor> &table, int64_t queries,
                        int64_t keys, int64_t head_dim, const Tensor &like) {
    if (!table)
        return {nullptr, DType::f32};
    table = parameter(op, argument, *table, {queries, keys, head_dim}, like);
    return as_parameter(op, argument, *table);
}

namespace {

struct Arguments {
    Tensor q;
    std::optional<Tensor> table_t, table_h, table_w;
};

// Checks the arguments and makes a problem of them, without outputs. What the problem points to is kept by `a`.
RelPosProblem rel_pos_problem(const char *op, Arguments &a, const std::vector<int64_t> &grid_q,
                              const std::vector<int64_t> &grid_k, bool has_cls) {
    RelPosProblem p = {};
    p.dtype = dtype_of(op, "q", a.q);
    a.q = tokens(op, "q", a.q, p.dtype, a.q);
    p.batch = a.q.size(0);
    p.heads = a.q.size(1);
    p.head_dim = a.q.size(3);
    p.has_cls = has_cls;
    p.grid_q = size3(op, "grid_q", grid_q, 0, 1);
    p.grid_k = size3(op, "grid_k", grid_k, 0, 1);
    STD_TORCH_CHECK(a.q.size(2) == has_cls + volume(p.grid_q), op, ": grid_q (", p.grid_q.t, ", ", p.grid_q.h, ", ",
                    p.grid_q.w, ") has ", volume(p.grid_q), " tokens", has_cls ? " (+1 cls)" : "", ", but q has ",
                    a.q.size(2), " tokens in dim 2");
    p.q = a.q.const_data_ptr();
    p.q_stride_b = a.q.stride(0);
    p.q_stride_h = a.q.stride(1);
    p.q_stride_n = a.q.stride(2);
    p.table_t = rel_pos_table(op, "table_t", a.table_t, p.grid_q.t, p.grid_k.t, p.head_dim, a.q);
    p.table_h = rel_pos_table(op, "table_h", a.table_h, p.grid_q.h, p.grid_k.h, p.head_dim, a.q);
    p.table_w = rel_pos_table(op, "table_w", a.table_w, p.grid_q.w, p.grid_k.w, p.head_dim, a.q);
    return p;
}

Tensor decomposed_rel_pos(Tensor q, std::vector<int64_t> grid_q, std::vector<int64_t> grid_k, bool has_cls,
                          std::optional<Tensor> table_t, std::optional<Tensor> table_h, std::optional<Tensor> table_w) {
    const char *const op = "decomposed_rel_pos";
    Arguments a = {q, table_t, table_h, table_w};
    RelPosProblem p = rel_pos_problem(op, a, grid_q, grid_k, has_cls);
    Tensor rows =
        empty(q, {p.batch, p.heads, q.size(2), p.grid_k.t + p.grid_k.h + p.grid_k.w}, accumulator_type_of(p.dtype));
    p.rows = rows.mutable_data_ptr();
    if (p.batch * p.heads > 0)
        run(op, a.q, p);
    return rows;
}

// The gradients of q and of the three tables; without elements where not needed.
std::tuple<Tensor, Tensor, Tensor, Tensor>
decomposed_rel_pos_backward(Tensor grad, Tensor q, std::vector<int64_t> grid_q, std::vector<int64_t> grid_k,
                            bool has_cls, std::optional<Tensor> table_t, std::optional<Tensor> table_h,
                            std::optional<Tensor> table_w, std::vector<bool> needs) {
    const char *const op = "decomposed_rel_pos_backward";
    Arguments a = {q, table_t, table_h, table_w};
    RelPosBackwardProblem p = {};
    p.forward = rel_pos_problem(op, a, grid_q, grid_k, has_cls);
    STD_TORCH_CHECK(needs.size() == 4, op, ": needs has ", needs.size(), " entries, it must have 4");
    const Size3 keys = p.forward.grid_k;
    grad = rows(op, "grad", grad, p.forward.dtype == DType::f64 ? DType::f64 : DType::f32, a.q);
    check_shape(op, "grad", grad, {p.forward.batch, p.forward.heads, q.size(2), keys.t + keys.h + keys.w});
    p.grad = grad.const_data_ptr();
    p.stride_b = grad.stride(0);
    p.stride_h = grad.stride(1);
    p.stride_n = grad.stride(2);

    Tensor q_grad = needs[0] ? gradient_like(q) : nothing(q);
    p.q = needs[0] ? q_grad.mutable_data_ptr() : nullptr;
    const auto table = [&](bool needed, const std::optional<Tensor> &of, ParameterGradient &gradient) {
        if (!needed || !of)
            return nothing(q);
        Tensor out = gradient_like(*of);
        gradient = {out.mutable_data_ptr(), dtype_of(op, "table", *of)};
        return out;
    };
    Tensor t_grad = table(needs[1], a.table_t, p.table_t);
    Tensor h_grad = table(needs[2], a.table_h, p.table_h);
    Tensor w_grad = table(needs[3], a.table_w, p.table_w);
    if (p.q || p.table_t.data || p.table_h.data || p.table_w.data)
        run(op, a.q, p);
    return {q_grad, t_grad, h_grad, w_grad};
}

} // namespace
} // namespace mvit::bindings

STABLE_TORCH_LIBRARY_IMPL(MVIT_OPS, MVIT_DISPATCH_KEY, m) {
    m.impl("decomposed_rel_pos", TORCH_BOX(&mvit::bindings::decomposed_rel_pos));
    m.impl("decomposed_rel_pos_backward", TORCH_BOX(&mvit::bindings::decomposed_rel_pos_backward));
}
