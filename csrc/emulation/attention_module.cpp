// Attention, as functions of pointers, sizes and strides: what the bindings do, without torch.
#include "cuda/launchers.h"
#include "emulation/arguments.h"
#include "emulation/block.h"
#include "emulation/module.h"

namespace mvit::emulation {
namespace {

namespace py = pybind11;

void pooling_attention(const std::string &dtype, bool tf32, int64_t multiprocessors,
                       const std::array<int64_t, 5> &sizes, uintptr_t q, const Strides &q_strides, uintptr_t k,
                       const Strides &k_strides, uintptr_t v, const Strides &v_strides, uintptr_t rel_pos,
                       const Strides &rel_pos_strides, const std::array<int64_t, 3> &grid_k, double scale, bool has_cls,
                       const std::string &residual, uintptr_t out, uintptr_t lse, uint64_t seed) {
    AttentionProblem p = {};
    p.dtype = dtype_of(dtype);
    p.tf32 = tf32;
    p.batch = sizes[0], p.heads = sizes[1], p.queries = sizes[2], p.keys = sizes[3], p.head_dim = sizes[4];
    p.has_cls = has_cls;
    p.residual = residual == "none" ? Residual::none : residual == "all" ? Residual::all : Residual::no_cls;
    p.scale = scale;
    p.q = reinterpret_cast<const void *>(q);
    p.k = reinterpret_cast<const void *>(k);
    p.v = reinterpret_cast<const void *>(v);
    p.q_stride_b = q_strides[0], p.q_stride_h = q_strides[1], p.q_stride_n = q_strides[2];
    p.k_stride_b = k_strides[0], p.k_stride_h = k_strides[1], p.k_stride_n = k_strides[2];
    p.v_stride_b = v_strides[0], p.v_stride_h = v_strides[1], p.v_stride_n = v_strides[2];
    p.rel_pos = reinterpret_cast<const void *>(rel_pos);
    p.rel_pos_stride_b = rel_pos_strides[0], p.rel_pos_stride_h = rel_pos_strides[1];
    p.rel_pos_stride_n = rel_pos_strides[2];
    p.grid_k = size3(grid_k);
    p.out = reinterpret_cast<void *>(out);
    p.lse = reinterpret_cast<void *>(lse);
    set_multiprocessors(multiprocessors);
    const Scratch scratch(cuda::pooling_attention_forward_scratch(p));
    if (const char *const reason = cuda::pooling_attention_forward(p, scratch.data(), &seed))
        throw std::runtime_error(reason);
}

// How the kernel for a dtype divides a problem, as a dict.
py::dict attention_plan(const std::string &dtype, bool tf32, const std::array<int64_t, 5> &sizes,
                        const std::array<int64_t, 3> &grid_k, int64_t multiprocessors) {
    AttentionProblem p = {};
    p.dtype = dtype_of(dtype);
    p.tf32 = tf32;
    p.batch = sizes[0], p.heads = sizes[1], p.queries = sizes[2], p.keys = sizes[3], p.head_dim = sizes[4];
    p.grid_k = size3(grid_k);
    p.rel_pos = volume(p.grid_k) ? &p : nullptr;
    const AttentionForward f = attention_forward(p, multiprocessors);
    const AttentionTile tile = attention_tile(p);
    py::dict plan;
    plan["rows"] = tile.rows, plan["keys"] = tile.keys, plan["threads"] = tile.threads;
    plan["blocks_of_multiprocessor"] = tile.blocks;
    plan["blocks"] = attention_blocks(f), plan["splits"] = f.splits, plan["keys_of_split"] = f.keys_of_split;
    plan["shared_bytes"] = attention_shared_bytes(p);
    plan["bias"] = attention_bias(p) == AttentionBias::none      ? "none"
                   : attention_bias(p) == AttentionBias::product ? "product"
                                                                 : "gather";
    plan["scratch_bytes"] = attention_scratch_bytes(f);
    return plan;
}

} // namespace

void add_attention_kernels(py::module_ &m) {
    m.def("pooling_attention", &pooling_attention);
    m.def("attention_plan", &attention_plan);
    m.def("attention_dim", [](int64_t head_dim) { return attention_dim(head_dim); });
    m.def("attention_dims", [] { return std::vector<int>(std::begin(kAttentionDims), std::end(kAttentionDims)); });
}

} // namespace mvit::emulation
