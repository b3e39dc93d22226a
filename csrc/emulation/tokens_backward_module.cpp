// The backward of pooling and relative position, as functions of pointers, sizes and strides.
#include "cuda/launchers.h"
#include "emulation/token_arguments.h"

namespace mvit::emulation {
namespace {

namespace py = pybind11;

ParameterGradient parameter_gradient(const Named &of) {
    return {reinterpret_cast<void *>(of.first), dtype_of(of.second)};
}

// One branch: the dict of the forward, and "grad", "grad_strides", "grad_x", "grad_x_strides" and the gradients of
// the parameters, with the address 0 where one is not asked for.
PoolBackwardProblem pool_backward_of(const std::string &dtype, int64_t batch, int64_t heads, int64_t head_dim,
                                     bool has_cls, const std::vector<py::dict> &branches) {
    PoolBackwardProblem p = {};
    p.forward = pool_of(dtype, batch, heads, head_dim, has_cls, branches);
    for (size_t i = 0; i < branches.size(); ++i) {
        const py::dict &d = branches[i];
        PoolBranchGradients &g = p.gradients[i];
        g.grad = reinterpret_cast<const void *>(d["grad"].cast<uintptr_t>());
        const auto strides = d["grad_strides"].cast<Strides>();
        g.stride_b = strides[0], g.stride_h = strides[1], g.stride_n = strides[2];
        g.x = reinterpret_cast<void *>(d["grad_x"].cast<uintptr_t>());
        const auto x_strides = d["grad_x_strides"].cast<Strides>();
        g.x_stride_b = x_strides[0], g.x_stride_h = x_strides[1], g.x_stride_n = x_strides[2];
        g.weight = parameter_gradient(d["grad_weight"].cast<Named>());
        g.norm_weight = parameter_gradient(d["grad_norm_weight"].cast<Named>());
        g.norm_bias = parameter_gradient(d["grad_norm_bias"].cast<Named>());
    }
    return p;
}

void pool3d_norm_backward(const std::string &dtype, int64_t batch, int64_t heads, int64_t head_dim, bool has_cls,
                          const std::vector<py::dict> &branches, uint64_t seed) {
    const PoolBackwardProblem p = pool_backward_of(dtype, batch, heads, head_dim, has_cls, branches);
    const Scratch scratch(cuda::pool3d_norm_backward_scratch(p));
    if (const char *const reason = cuda::pool3d_norm_backward(p, scratch.data(), &seed))
        throw std::runtime_error(reason);
}

void decomposed_rel_pos_backward(const std::string &dtype, int64_t batch, int64_t heads, int64_t head_dim, bool has_cls,
                                 const std::array<int64_t, 3> &grid_q, const std::array<int64_t, 3> &grid_k,
                                 uintptr_t q, const Strides &strides, const std::vector<Named> &tables, uintptr_t grad,
                                 const Strides &grad_strides, uintptr_t grad_q, const std::vector<Named> &grad_tables,
                                 uint64_t seed) {
    RelPosBackwardProblem p = {};
    p.forward = rel_pos_of(dtype, batch, heads, head_dim, has_cls, grid_q, grid_k, q, strides, tables);
    p.grad = reinterpret_cast<const void *>(grad);
    p.stride_b = grad_strides[0], p.stride_h = grad_strides[1], p.stride_n = grad_strides[2];
    p.q = reinterpret_cast<void *>(grad_q);
    p.table_t = parameter_gradient(grad_tables.at(0));
    p.table_h = parameter_gradient(grad_tables.at(1));
    p.table_w = parameter_gradient(grad_tables.at(2));
    const Scratch scratch(cuda::decomposed_rel_pos_backward_scratch(p));
    if (const char *const reason = cuda::decomposed_rel_pos_backward(p, scratch.data(), &seed))
        throw std::runtime_error(reason);
}

// How the problem is divided: scratch memory and, per branch, the blocks of each kernel.
py::dict pool3d_norm_backward_plan(const std::string &dtype, int64_t batch, int64_t heads, int64_t head_dim,
                                   bool has_cls, const std::vector<py::dict> &branches) {
    const PoolBackwardProblem p = pool_backward_of(dtype, batch, heads, head_dim, has_cls, branches);
    const PoolBackwardPlan plan = pool_backward_plan(p, nullptr);
    const PoolTransposedPlan transposed = pool_transposed_plan(plan);
    py::list of_branches;
    for (int i = 0; i < p.forward.branches; ++i) {
        const PoolBackwardBranch &of = plan.branch[i];
        py::dict d;
        d["outputs"] = of.output_tiles + of.output_strips;
        d["inputs"] = transposed.plan.tiling[i].blocks + of.input_strips;
        d["weight"] = of.weight_blocks;
        d["weight_tiles"] = of.weight_tile_blocks;
        d["tiles"] = pool_tiles_of_head(of.weight_tiling);
        d["weight_reads"] = pool_tokens_read(p.forward.branch[i], of.weight_tiling);
        d["shared_bytes"] = max(max(pool_output_tile_bytes(of.tiling), pool_output_strip_bytes(p.forward.branch[i])),
                                of.weight_tiling.shared_bytes);
        d["parameters"] = of.parameter_blocks;
        d["parts"] = of.weight_parts;
        of_branches.append(d);
    }
    py::dict found;
    found["bytes"] = plan.bytes;
    found["branches"] = of_branches;
    return found;
}

} // namespace

void add_token_backward_kernels(py::module_ &m) {
    m.def("pool3d_norm_backward_plan", &pool3d_norm_backward_plan);
    m.def("pool3d_norm_backward", &pool3d_norm_backward);
    m.def("decomposed_rel_pos_backward", &decomposed_rel_pos_backward);
}

} // namespace mvit::emulation
