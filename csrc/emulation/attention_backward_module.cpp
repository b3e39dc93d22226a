// The backward of attention, as functions of pointers, sizes and strides: what the bindings do, without torch.
#include "cuda/launchers.h"
#include "emulation/arguments.h"
#include "emulation/block.h"
#include "emulation/module.h"

namespace mvit::emulation {
namespace {

namespace py = pybind11;
using Strided = std::pair<uintptr_t, Strides>; // a tensor's address and its strides

const void *address(const Strided &of) { return reinterpret_cast<const void *>(of.first); }

// sizes: B, H, Nq, Nk, D. grad_out's strides are those of (B, H, Nq). gradients: of q, k, v and rel_pos, 0 where not
// asked for.
AttentionBackwardProblem problem_of(const std::string &dtype, bool tf32, const std::array<int64_t, 5> &sizes,
                                    const std::array<Strided, 4> &inputs, const std::array<int64_t, 3> &grid_k,
                                    double scale, bool has_cls, const std::string &residual, uintptr_t lse,
                                    const Strided &grad_out, uintptr_t grad_lse,
                                    const std::array<uintptr_t, 4> &gradients) {
    AttentionBackwardProblem g = {};
    AttentionProblem &p = g.forward;
    p.dtype = dtype_of(dtype), p.tf32 = tf32;
    p.batch = sizes[0], p.heads = sizes[1], p.queries = sizes[2], p.keys = sizes[3], p.head_dim = sizes[4];
    p.has_cls = has_cls;
    p.residual = residual == "none" ? Residual::none : residual == "all" ? Residual::all : Residual::no_cls;
    p.scale = scale;
    const auto &[q, k, v, rel_pos] = inputs;
    p.q = address(q), p.k = address(k), p.v = address(v), p.rel_pos = address(rel_pos);
    p.q_stride_b = q.second[0], p.q_stride_h = q.second[1], p.q_stride_n = q.second[2];
    p.k_stride_b = k.second[0], p.k_stride_h = k.second[1], p.k_stride_n = k.second[2];
    p.v_stride_b = v.second[0], p.v_stride_h = v.second[1], p.v_stride_n = v.second[2];
    p.rel_pos_stride_b = rel_pos.second[0], p.rel_pos_stride_h = rel_pos.second[1];
    p.rel_pos_stride_n = rel_pos.second[2];
    p.grid_k = size3(grid_k);
    p.lse = reinterpret_cast<void *>(lse);
    g.grad_out = address(grad_out), g.grad_lse = reinterpret_cast<const void *>(grad_lse);
    g.stride_b = grad_out.second[0], g.stride_h = grad_out.second[1], g.stride_n = grad_out.second[2];
    g.q = reinterpret_cast<void *>(gradients[0]), g.k = reinterpret_cast<void *>(gradients[1]);
    g.v = reinterpret_cast<void *>(gradients[2]), g.rel_pos = reinterpret_cast<void *>(gradients[3]);
    return g;
}

} // namespace

void add_attention_backward_kernels(py::module_ &m) {
    m.def("pooling_attention_backward",
          [](const std::string &dtype, bool tf32, int64_t multiprocessors, const std::array<int64_t, 5> &sizes,
             const std::array<Strided, 4> &inputs, const std::array<int64_t, 3> &grid_k, double scale, bool has_cls,
             const std::string &residual, uintptr_t lse, const Strided &grad_out, uintptr_t grad_lse,
             const std::array<uintptr_t, 4> &gradients, uint64_t seed) {
              const AttentionBackwardProblem p = problem_of(dtype, tf32, sizes, inputs, grid_k, scale, has_cls,
                                                            residual, lse, grad_out, grad_lse, gradients);
              set_multiprocessors(multiprocessors);
              const Scratch scratch(cuda::pooling_attention_backward_scratch(p));
              if (const char *const reason = cuda::pooling_attention_backward(p, scratch.data(), &seed))
                  throw std::runtime_error(reason);
          });
    m.def("max_backward_rel_pos_row", [](const std::string &dtype, int64_t head_dim, int64_t shared_bytes) {
        return max_backward_rel_pos_row(dtype_of(dtype), head_dim, shared_bytes);
    });
}

} // namespace mvit::emulation
