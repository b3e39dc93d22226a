// mvit_kernels::decomposed_rel_pos on the CPU.
#include "bindings/tensors.h"

namespace mvit::bindings {
namespace {

Tensor decomposed_rel_pos(Tensor q, std::vector<int64_t> grid_q, std::vector<int64_t> grid_k, bool has_cls,
                          std::optional<Tensor> table_t, std::optional<Tensor> table_h, std::optional<Tensor> table_w) {
    const char *const op = "decomposed_rel_pos";
    RelPosProblem p = {};
    p.dtype = dtype_of(op, "q", q);
    q = tokens(op, "q", q, p.dtype);
    p.batch = q.size(0);
    p.heads = q.size(1);
    p.head_dim = q.size(3);
    p.has_cls = has_cls;
    p.grid_q = size3(op, "grid_q", grid_q, 0, 1);
    p.grid_k = size3(op, "grid_k", grid_k, 0, 1);
    STD_TORCH_CHECK(q.size(2) == has_cls + volume(p.grid_q), op, ": grid_q (", p.grid_q.t, ", ", p.grid_q.h, ", ",
                    p.grid_q.w, ") has ", volume(p.grid_q), " tokens", has_cls ? " (+1 cls)" : "", ", but q has ",
                    q.size(2), " tokens in dim 2");
    p.q = q.const_data_ptr();
    p.q_stride_b = q.stride(0);
    p.q_stride_h = q.stride(1);
    p.q_stride_n = q.stride(2);
    const auto table = [&](const char *argument, std::optional<Tensor> &tensor, int64_t queries,
                           int64_t keys) -> Parameter {
        if (!tensor)
            return {nullptr, DType::f32};
        tensor = parameter(op, argument, *tensor, {queries, keys, p.head_dim});
        return as_parameter(op, argument, *tensor);
    };
    p.table_t = table("table_t", table_t, p.grid_q.t, p.grid_k.t);
    p.table_h = table("table_h", table_h, p.grid_q.h, p.grid_k.h);
    p.table_w = table("table_w", table_w, p.grid_q.w, p.grid_k.w);

    Tensor rows = empty(q, {p.batch, p.heads, q.size(2), p.grid_k.t + p.grid_k.h + p.grid_k.w},
                        accumulator_type_of(p.dtype));
    p.rows = rows.mutable_data_ptr();
    if (p.batch * p.heads > 0) {
        const cpu::Kernels &kernels = cpu::kernels();
        run(q, p, kernels.decomposed_rel_pos_scratch, kernels.decomposed_rel_pos);
    }
    return rows;
}

} // namespace
} // namespace mvit::bindings

STABLE_TORCH_LIBRARY_IMPL(mvit_kernels, CPU, m) {
    m.impl("decomposed_rel_pos", TORCH_BOX(&mvit::bindings::decomposed_rel_pos));
}
