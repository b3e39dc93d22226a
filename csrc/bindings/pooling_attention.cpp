// mvit_kernels::pooling_attention on the CPU.
#include "bindings/tensors.h"

#include <tuple>

namespace mvit::bindings {
namespace {

Residual residual_of(const char *op, const std::string &residual) {
    STD_TORCH_CHECK(residual == "none" || residual == "all" || residual == "no_cls", op, ": residual \"", residual,
                    "\", it must be none, all or no_cls");
    return residual == "none" ? Residual::none : residual == "all" ? Residual::all : Residual::no_cls;
}

std::tuple<Tensor, Tensor> pooling_attention(Tensor q, Tensor k, Tensor v, std::optional<Tensor> rel_pos,
                                             std::vector<int64_t> grid_k, double scale, bool has_cls,
                                             std::string residual) {
    const char *const op = "pooling_attention";
    AttentionProblem p = {};
    p.dtype = dtype_of(op, "q", q);
    q = tokens(op, "q", q, p.dtype);
    k = tokens(op, "k", k, p.dtype);
    v = tokens(op, "v", v, p.dtype);
    p.batch = q.size(0);
    p.heads = q.size(1);
    p.queries = q.size(2);
    p.head_dim = q.size(3);
    p.keys = k.size(2);
    p.has_cls = has_cls;
    p.residual = residual_of(op, residual);
    p.scale = scale;
    const auto check_like_q = [&](const char *argument, const Tensor &tensor) {
        STD_TORCH_CHECK(tensor.size(0) == p.batch && tensor.size(1) == p.heads && tensor.size(3) == p.head_dim, op, ": ",
                        argument, " ", shape_of(tensor), " must agree with q ", shape_of(q), " in B, H and D");
    };
    check_like_q("k", k);
    check_like_q("v", v);
    STD_TORCH_CHECK(v.size(2) == p.keys, op, ": v ", shape_of(v), " must have the ", p.keys, " tokens of k");
    STD_TORCH_CHECK(p.keys >= 1, op, ": k ", shape_of(k), " has no tokens, a softmax needs one");

    if (rel_pos) {
        p.grid_k = size3(op, "grid_k", grid_k, 0, 1);
        STD_TORCH_CHECK(p.keys == has_cls + volume(p.grid_k), op, ": grid_k (", p.grid_k.t, ", ", p.grid_k.h, ", ",
                        p.grid_k.w, ") has ", volume(p.grid_k), " tokens", has_cls ? " (+1 cls)" : "", ", but k has ",
                        p.keys, " tokens in dim 2");
        rel_pos = tokens(op, "rel_pos", *rel_pos, p.dtype == DType::f64 ? DType::f64 : DType::f32);
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
    p.k = k.const_data_ptr();
    p.v = v.const_data_ptr();
    p.q_stride_b = q.stride(0);
    p.q_stride_h = q.stride(1);
    p.q_stride_n = q.stride(2);
    p.k_stride_b = k.stride(0);
    p.k_stride_h = k.stride(1);
    p.k_stride_n = k.stride(2);
    p.v_stride_b = v.stride(0);
    p.v_stride_h = v.stride(1);
    p.v_stride_n = v.stride(2);

    Tensor out = empty(q, {p.batch, p.queries, p.heads, p.head_dim}, q.scalar_type());
    Tensor lse = empty(q, {p.batch, p.heads, p.queries}, accumulator_type_of(p.dtype));
    p.out = out.mutable_data_ptr();
    p.lse = lse.mutable_data_ptr();
    if (p.batch * p.heads * p.queries > 0) {
        const cpu::Kernels &kernels = cpu::kernels();
        run(q, p, kernels.pooling_attention_scratch, kernels.pooling_attention);
    }
    return {out, lse};
}

} // namespace
} // namespace mvit::bindings

STABLE_TORCH_LIBRARY_IMPL(mvit_kernels, CPU, m) {
    m.impl("pooling_attention", TORCH_BOX(&mvit::bindings::pooling_attention));
}
