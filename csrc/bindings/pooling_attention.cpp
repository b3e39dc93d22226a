// The ops pooling_attention and pooling_attention_backward.
#include "bindings/problems.h"

#include <tuple>

namespace mvit::bindings {

Residual residual_of(const char *op, const std::string &residual) {
    STD_TORCH_CHECK(residual == "none" || residual == "all" || residual == "no_cls", op, ": residual \"", residual,
                    "\", it must be none, all or no_cls");
    return residual == "none" ? Residual::none : residual == "all" ? Residual::all : Residual::no_cls;
}

void set_keys(const char *op, AttentionProblem &p, Tensor &k, Tensor &v, const char *argument, const Tensor &like) {
    const auto check = [&](const char *name, Tensor &tensor) {
        tensor = tokens(op, name, tensor, p.dtype, like);
        STD_TORCH_CHECK(tensor.size(0) == p.batch && tensor.size(1) == p.heads && tensor.size(3) == p.head_dim, op,
                        ": ", name, " ", shape_of(tensor), " must agree with ", argument, " ", shape_of(like),
                        " in B, H and D");
    };
    check("k", k);
    check("v", v);
    p.keys = k.size(2);
    STD_TORCH_CHECK(v.size(2) == p.keys, op, ": v ", shape_of(v), " must have the ", p.keys, " tokens of k");
    STD_TORCH_CHECK(p.keys >= 1, op, ": k ", shape_of(k), " has no tokens, a softmax needs one");
    p.k = k.const_data_ptr();
    p.v = v.const_data_ptr();
    p.k_stride_b = k.stride(0);
    p.k_stride_h = k.stride(1);
    p.k_stride_n = k.stride(2);
    p.v_stride_b = v.stride(0);
    p.v_stride_h = v.stride(1);
    p.v_stride_n = v.stride(2);
}

void set_grid_k(const char *op, AttentionProblem &p, const std::vector<int64_t> &grid_k) {
    p.grid_k = size3(op, "grid_k", grid_k, 0, 1);
    STD_TORCH_CHECK(p.keys == p.has_cls + volume(p.grid_k), op, ": grid_k (", p.grid_k.t, ", ", p.grid_k.h, ", ",
                    p.grid_k.w, ") has ", volume(p.grid_k), " tokens", p.has_cls ? " (+1 cls)" : "", ", but k has ",
                    p.keys, " tokens in dim 2");
}

namespace {

struct Arguments {
    Tensor q, k, v;
    std::optional<Tensor> rel_pos;
};

// Checks the arguments and makes a problem of them, without outputs. What the problem points to is kept by `a`.
AttentionProblem attention_problem(const char *op, Arguments &a, const std::vector<int64_t> &grid_k, double scale,
                                   bool has_cls, const std::string &residual, bool tf32) {
    AttentionProblem p = {};
    p.dtype = dtype_of(op, "q", a.q);
    p.tf32 = tf32;
    const Tensor &q = a.q = tokens(op, "q", a.q, p.dtype, a.q);
    std::optional<Tensor> &rel_pos = a.rel_pos;
    p.batch = q.size(0);
    p.heads = q.size(1);
    p.queries = q.size(2);
    p.head_dim = q.size(3);
    p.has_cls = has_cls;
    p.residual = residual_of(op, residual);
    p.scale = scale;
    set_keys(op, p, a.k, a.v, "q", q);

    if (rel_pos) {
        set_grid_k(op, p, grid_k);
        rel_pos = rows(op, "rel_pos", *rel_pos, p.dtype == DType::f64 ? DType::f64 : DType::f32, q);
        const int64_t entries = p.grid_k.t + p.grid_k.h + p.grid_k.w;
        STD_TORCH_CHECK(rel_pos->size(0) == p.batch && rel_pos->size(1) == p.heads && rel_pos->size(2) == p.queries &&
                            rel_pos->size(3) == entries,
                        op, ": rel_pos ", shape_of(*rel_pos), " must be (", p.batch, ", ", p.heads, ", ", p.queries,
                        ", ", entries, ")");
        p.rel_pos = rel_pos->const_data_ptr();
        p.rel_pos_stride_b = rel_pos->stride(0);
        p.rel_pos_stride_h = rel_pos->stride(1);
        p.rel_pos_stride_n = rel_pos->stride(2);
    }
    p.q = q.const_data_ptr();
    p.q_stride_b = q.stride(0);
    p.q_stride_h = q.stride(1);
    p.q_stride_n = q.stride(2);
    return p;
}

std::tuple<Tensor, Tensor> pooling_attention(Tensor q, Tensor k, Tensor v, std::optional<Tensor> rel_pos,
                                             std::vector<int64_t> grid_k, double scale, bool has_cls,
                                             std::string residual, bool tf32) {
    const char *const op = "pooling_attention";
    Arguments a = {q, k, v, rel_pos};
    AttentionProblem p = attention_problem(op, a, grid_k, scale, has_cls, residual, tf32);
    Tensor out = empty(q, {p.batch, p.queries, p.heads, p.head_dim}, q.scalar_type());
    Tensor lse = empty(q, {p.batch, p.heads, p.queries}, accumulator_type_of(p.dtype));
    p.out = out.mutable_data_ptr();
    p.lse = lse.mutable_data_ptr();
    if (p.batch * p.heads * p.queries > 0)
        run(op, a.q, p);
    return {out, lse};
}

// The gradients of q, k, v and rel_pos; without elements where not needed.
std::tuple<Tensor, Tensor, Tensor, Tensor>
pooling_attention_backward(Tensor grad_out, std::optional<Tensor> grad_lse, Tensor q, Tensor k, Tensor v,
                           std::optional<Tensor> rel_pos, Tensor lse, std::vector<int64_t> grid_k, double scale,
                           bool has_cls, std::string residual, std::vector<bool> needs, bool tf32) {
    const char *const op = "pooling_attention_backward";
    Arguments a = {q, k, v, rel_pos};
    AttentionBackwardProblem p = {};
    p.forward = attention_problem(op, a, grid_k, scale, has_cls, residual, tf32);
    STD_TORCH_CHECK(needs.size() == 4, op, ": needs has ", needs.size(), " entries, it must have 4");
    const int64_t batch = p.forward.batch, heads = p.forward.heads, queries = p.forward.queries;
    grad_out = tokens(op, "grad_out", grad_out, p.forward.dtype, a.q);
    check_shape(op, "grad_out", grad_out, {batch, queries, heads, p.forward.head_dim});
    p.grad_out = grad_out.const_data_ptr();
    p.stride_b = grad_out.stride(0);
    p.stride_n = grad_out.stride(1);
    p.stride_h = grad_out.stride(2);
    const auto per_row = [&](const char *argument, Tensor &tensor) {
        check_shape(op, argument, tensor, {batch, heads, queries});
        check_device(op, argument, tensor, a.q);
        STD_TORCH_CHECK(tensor.scalar_type() == accumulator_type_of(p.forward.dtype), op, ": ", argument,
                        " must have the dtype of the log-sum-exp, ",
                        torch::headeronly::toString(accumulator_type_of(p.forward.dtype)));
        tensor = torch::stable::contiguous(tensor);
        return tensor.mutable_data_ptr();
    };
    p.forward.lse = per_row("lse", lse);
    if (grad_lse)
        p.grad_lse = per_row("grad_lse", *grad_lse);

    const auto gradient = [&](bool needed, const Tensor &of, void *&data) {
        Tensor out = needed ? gradient_like(of) : nothing(q);
        data = needed ? out.mutable_data_ptr() : nullptr;
        return out;
    };
    Tensor q_grad = gradient(needs[0], q, p.q), k_grad = gradient(needs[1], k, p.k),
           v_grad = gradient(needs[2], v, p.v);
    Tensor rel_pos_grad = rel_pos ? gradient(needs[3], *rel_pos, p.rel_pos) : nothing(q);
    if ((p.q || p.k || p.v || p.rel_pos) && batch * heads > 0)
        run(op, a.q, p);
    return {q_grad, k_grad, v_grad, rel_pos_grad};
}

} // namespace
} // namespace mvit::bindings

STABLE_TORCH_LIBRARY_IMPL(MVIT_OPS, MVIT_DISPATCH_KEY, m) {
    m.impl("pooling_attention", TORCH_BOX(&mvit::bindings::pooling_attention));
    m.impl("pooling_attention_backward", TORCH_BOX(&mvit::bindings::pooling_attention_backward));
}
