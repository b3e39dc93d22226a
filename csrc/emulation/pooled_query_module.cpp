// Attention that pools q itself, as a function of pointers, sizes and strides.
#include "cuda/launchers.h"
#include "emulation/module.h"
#include "emulation/token_arguments.h"

namespace mvit::emulation {
namespace {

namespace py = pybind11;

// `branch` of q; `tables` of t, h and w, null where the layer has none.
void pooled_query_attention(const std::string &dtype, const std::array<int64_t, 4> &sizes, const py::dict &branch,
                            uintptr_t k, const Strides &k_strides, uintptr_t v, const Strides &v_strides,
                            const std::array<int64_t, 3> &grid_k,
                            const std::vector<std::pair<uintptr_t, std::string>> &tables, double scale, bool has_cls,
                            const std::string &residual, uintptr_t out, uintptr_t lse, uint64_t seed) {
    PooledQueryProblem p = {};
    p.pool.dtype = dtype_of(dtype);
    p.pool.batch = sizes[0], p.pool.heads = sizes[1], p.pool.head_dim = sizes[3];
    p.pool.has_cls = has_cls;
    p.pool.branches = 1;
    p.pool.branch[0] = branch_of(branch);
    AttentionProblem &a = p.attention;
    a.dtype = p.pool.dtype;
    a.batch = sizes[0], a.heads = sizes[1], a.keys = sizes[2], a.head_dim = sizes[3];
    a.queries = pool_tokens(p.pool, p.pool.branch[0].out_grid);
    a.has_cls = has_cls;
    a.residual = residual == "none" ? Residual::none : residual == "all" ? Residual::all : Residual::no_cls;
    a.scale = scale;
    a.k = reinterpret_cast<const void *>(k);
    a.v = reinterpret_cast<const void *>(v);
    a.k_stride_b = k_strides[0], a.k_stride_h = k_strides[1], a.k_stride_n = k_strides[2];
    a.v_stride_b = v_strides[0], a.v_stride_h = v_strides[1], a.v_stride_n = v_strides[2];
    a.grid_k = size3(grid_k);
    a.out = reinterpret_cast<void *>(out);
    a.lse = reinterpret_cast<void *>(lse);
    p.table_t = parameter(tables.at(0)), p.table_h = parameter(tables.at(1)), p.table_w = parameter(tables.at(2));
    if (const char *const reason = cuda::pooled_query_attention_forward(p, &seed))
        throw std::runtime_error(reason);
}

} // namespace

void add_pooled_query_kernel(py::module_ &m) { m.def("pooled_query_attention", &pooled_query_attention); }

} // namespace mvit::emulation
