// Pooling and relative position, as functions of pointers, sizes and strides: what the bindings do, without torch.
#include "cuda/launchers.h"
#include "emulation/token_arguments.h"

namespace mvit::emulation {
namespace {

namespace py = pybind11;

void pool3d_norm(const std::string &dtype, int64_t batch, int64_t heads, int64_t head_dim, bool has_cls,
                 const std::vector<py::dict> &branches, uint64_t seed) {
    const PoolProblem p = pool_of(dtype, batch, heads, head_dim, has_cls, branches);
    if (const char *const reason = cuda::pool3d_norm_forward(p, &seed))
        throw std::runtime_error(reason);
}

void decomposed_rel_pos(const std::string &dtype, int64_t batch, int64_t heads, int64_t head_dim, bool has_cls,
                        const std::array<int64_t, 3> &grid_q, const std::array<int64_t, 3> &grid_k, uintptr_t q,
                        const Strides &strides, const std::vector<std::pair<uintptr_t, std::string>> &tables,
                        uintptr_t rows, uint64_t seed) {
    RelPosProblem p = rel_pos_of(dtype, batch, heads, head_dim, has_cls, grid_q, grid_k, q, strides, tables);
    p.rows = reinterpret_cast<void *>(rows);
    if (const char *const reason = cuda::decomposed_rel_pos_forward(p, &seed))
        throw std::runtime_error(reason);
}

// How each branch is divided.
py::list pool3d_norm_plan(const std::string &dtype, int64_t batch, int64_t heads, int64_t head_dim, bool has_cls,
                          const std::vector<py::dict> &branches) {
    const PoolProblem p = pool_of(dtype, batch, heads, head_dim, has_cls, branches);
    const PoolPlan plan = pool_plan(p);
    py::list found;
    for (int i = 0; i < p.branches; ++i) {
        const PoolTiling &of = plan.tiling[i];
        py::dict d;
        d["blocks"] = of.blocks;
        d["lines"] = of.lines;
        d["run"] = of.run;
        d["shared_bytes"] = of.shared_bytes;
        d["strip_blocks"] = plan.strip_blocks[i];
        d["tokens_read"] = pool_tokens_read(p.branch[i], of);
        d["tokens_needed"] = pool_tokens_needed(p.branch[i]);
        found.append(d);
    }
    return found;
}

} // namespace

void add_token_kernels(py::module_ &m) {
    m.def("pool3d_norm", &pool3d_norm);
    m.def("pool3d_norm_plan", &pool3d_norm_plan);
    m.def("decomposed_rel_pos", &decomposed_rel_pos);
}

} // namespace mvit::emulation
