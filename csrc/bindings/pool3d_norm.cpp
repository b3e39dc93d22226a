// The ops pool3d_norm, qkv_pool3d_norm and qkv_pool3d_norm_backward.
#include "bindings/problems.h"

namespace mvit::bindings {
namespace {

PoolMode mode_of(const char *op, const std::string &mode) {
    STD_TORCH_CHECK(mode == "conv" || mode == "avg" || mode == "max", op, ": mode \"", mode,
                    "\", it must be conv, avg or max");
    return mode == "conv" ? PoolMode::conv : mode == "avg" ? PoolMode::avg : PoolMode::max;
}

} // namespace

PoolProblem pool_problem(const char *op, PoolArguments &a) {
    const size_t branches = a.x.size();
    STD_TORCH_CHECK(branches >= 1 && branches <= size_t(kMaxPoolBranches), op, ": ", branches,
                    " tensors in x, there must be 1 to ", kMaxPoolBranches);
    const auto check_length = [&](const char *argument, size_t length, size_t wanted) {
        STD_TORCH_CHECK(length == wanted, op, ": ", argument, " has ", length, " entries, for ", branches,
                        " tensors in x it must have ", wanted);
    };
    check_length("thw", a.thw.size(), 3 * branches);
    check_length("mode", a.mode.size(), branches);
    check_length("kernel", a.kernel.size(), 3 * branches);
    check_length("stride", a.stride.size(), 3 * branches);
    check_length("padding", a.padding.size(), 3 * branches);
    check_length("weight", a.weight.size(), branches);
    check_length("norm_weight", a.norm_weight.size(), branches);
    check_length("norm_bias", a.norm_bias.size(), branches);
    check_length("norm_eps", a.norm_eps.size(), branches);

    PoolProblem problem = {};
    problem.dtype = dtype_of(op, "x", a.x[0]);
    problem.has_cls = a.has_cls;
    problem.branches = int32_t(branches);
    for (size_t i = 0; i < branches; ++i) {
        Tensor &x = a.x[i] = tokens(op, "x", a.x[i], problem.dtype, a.x[0]);
        if (i == 0) {
            problem.batch = x.size(0);
            problem.heads = x.size(1);
            problem.head_dim = x.size(3);
        }
        STD_TORCH_CHECK(x.size(0) == problem.batch && x.size(1) == problem.heads && x.size(3) == problem.head_dim, op,
                        ": x ", shape_of(x), " must agree with ", shape_of(a.x[0]), " in B, H and D");

        PoolBranch &b = problem.branch[i];
        b.in = size3(op, "thw", a.thw, 3 * i, 1);
        b.kernel = size3(op, "kernel", a.kernel, 3 * i, 1);
        b.stride = size3(op, "stride", a.stride, 3 * i, 1);
        b.padding = size3(op, "padding", a.padding, 3 * i, 0);
        STD_TORCH_CHECK(x.size(2) == a.has_cls + volume(b.in), op, ": thw (", b.in.t, ", ", b.in.h, ", ", b.in.w,
                        ") has ", volume(b.in), " tokens", a.has_cls ? " (+1 cls)" : "", ", but x has ", x.size(2),
                        " tokens in dim 2");
        b.out_grid = pooled(b.in, b.kernel, b.stride, b.padding);
        STD_TORCH_CHECK(volume(b.out_grid) >= 1, op, ": kernel (", b.kernel.t, ", ", b.kernel.h, ", ", b.kernel.w,
                        ") is larger than the padded thw (", b.in.t, ", ", b.in.h, ", ", b.in.w, ")");

        b.mode = mode_of(op, a.mode[i]);
        STD_TORCH_CHECK(a.weight[i].has_value() == (b.mode == PoolMode::conv), op, ": mode \"", a.mode[i],
                        a.weight[i] ? "\" takes no weight" : "\" needs a weight");
        if (a.weight[i]) {
            const int64_t channels = a.weight[i]->dim() == 5 ? a.weight[i]->size(0) : 0;
            b.per_head_weight = channels == problem.heads * problem.head_dim && channels != problem.head_dim;
            a.weight[i] =
                parameter(op, "weight", *a.weight[i],
                          {b.per_head_weight ? channels : problem.head_dim, 1, b.kernel.t, b.kernel.h, b.kernel.w}, x);
            b.weight = as_parameter(op, "weight", *a.weight[i]);
        }
        b.norm = a.norm_eps[i] >= 0;
        b.norm_eps = b.norm ? a.norm_eps[i] : 0;
        const auto norm_parameter = [&](const char *argument, std::optional<Tensor> &tensor) -> Parameter {
            if (!tensor)
                return {nullptr, DType::f32};
            STD_TORCH_CHECK(b.norm, op, ": ", argument, " without norm_eps");
            tensor = parameter(op, argument, *tensor, {problem.head_dim}, x);
            return as_parameter(op, argument, *tensor);
        };
        b.norm_weight = norm_parameter("norm_weight", a.norm_weight[i]);
        b.norm_bias = norm_parameter("norm_bias", a.norm_bias[i]);

        b.x = x.const_data_ptr();
        b.stride_b = x.stride(0);
        b.stride_h = x.stride(1);
        b.stride_n = x.stride(2);
    }
    return problem;
}

namespace {

std::vector<Tensor> pool(const char *op, PoolArguments a) {
    PoolProblem problem = pool_problem(op, a);
    std::vector<Tensor> out;
    for (size_t i = 0; i < a.x.size(); ++i) {
        PoolBranch &b = problem.branch[i];
        out.push_back(empty(a.x[i], {problem.batch, problem.heads, a.has_cls + volume(b.out_grid), problem.head_dim},
                            a.x[i].scalar_type()));
        b.out = out.back().mutable_data_ptr();
    }
    if (problem.batch * problem.heads > 0)
        run(op, a.x[0], problem);
    return out;
}

Tensor pool3d_norm(Tensor x, std::vector<int64_t> thw, bool has_cls, std::string mode, std::vector<int64_t> kernel,
                   std::vector<int64_t> stride, std::vector<int64_t> padding, std::optional<Tensor> weight,
                   std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias, std::optional<double> norm_eps) {
    const double eps = norm_eps.value_or(-1);
    return pool("pool3d_norm",
                {{x}, thw, has_cls, {mode}, kernel, stride, padding, {weight}, {norm_weight}, {norm_bias}, {eps}})[0];
}

// In a list an absent parameter is a tensor without elements, an absent eps is -1: autograd does not reach into
// Tensor?[], and AOTInductor does not store float?[].
std::vector<std::optional<Tensor>> present(const std::vector<Tensor> &parameters) {
    std::vector<std::optional<Tensor>> found;
    for (const Tensor &parameter : parameters)
        found.push_back(parameter.numel() > 0 ? std::optional<Tensor>(parameter) : std::nullopt);
    return found;
}

std::vector<Tensor> qkv_pool3d_norm(std::vector<Tensor> x, std::vector<int64_t> thw, bool has_cls,
                                    std::vector<std::string> mode, std::vector<int64_t> kernel,
                                    std::vector<int64_t> stride, std::vector<int64_t> padding,
                                    std::vector<Tensor> weight, std::vector<Tensor> norm_weight,
                                    std::vector<Tensor> norm_bias, std::vector<double> norm_eps) {
    return pool("qkv_pool3d_norm", {x, thw, has_cls, mode, kernel, stride, padding, present(weight),
                                    present(norm_weight), present(norm_bias), norm_eps});
}

// Uninitialised, for the gradient of tokens: [batch][token][head] where x lies so, as slices of a projection do. The
// projection's backward then puts the gradients of q, k and v together in one pass.
Tensor token_gradient_like(const Tensor &x) {
    if (!(x.stride(2) > x.stride(1) && x.stride(1) > 0))
        return gradient_like(x);
    return torch::stable::transpose(empty(x, {x.size(0), x.size(2), x.size(1), x.size(3)}, x.scalar_type()), 1, 2);
}

// Four gradients per branch: of x, weight, norm_weight and norm_bias; without elements where not needed.
std::vector<Tensor> qkv_pool3d_norm_backward(std::vector<Tensor> grad, std::vector<Tensor> x, std::vector<int64_t> thw,
                                             bool has_cls, std::vector<std::string> mode, std::vector<int64_t> kernel,
                                             std::vector<int64_t> stride, std::vector<int64_t> padding,
                                             std::vector<Tensor> weight, std::vector<Tensor> norm_weight,
                                             std::vector<Tensor> norm_bias, std::vector<double> norm_eps,
                                             std::vector<bool> needs) {
    const char *const op = "qkv_pool3d_norm_backward";
    PoolArguments a = {
        x,       thw, has_cls, mode, kernel, stride, padding, present(weight), present(norm_weight), present(norm_bias),
        norm_eps};
    PoolBackwardProblem problem = {};
    problem.forward = pool_problem(op, a);
    STD_TORCH_CHECK(grad.size() == x.size(), op, ": ", grad.size(), " gradients for ", x.size(), " tensors in x");
    STD_TORCH_CHECK(needs.size() == 4 * x.size(), op, ": needs has ", needs.size(), " entries, it must have ",
                    4 * x.size());
    std::vector<Tensor> out;
    bool any = false;
    for (size_t i = 0; i < x.size(); ++i) {
        const PoolBranch &b = problem.forward.branch[i];
        PoolBranchGradients &g = problem.gradients[i];
        grad[i] = tokens(op, "grad", grad[i], problem.forward.dtype, a.x[0]);
        check_shape(
            op, "grad", grad[i],
            {problem.forward.batch, problem.forward.heads, has_cls + volume(b.out_grid), problem.forward.head_dim});
        g.grad = grad[i].const_data_ptr();
        g.stride_b = grad[i].stride(0);
        g.stride_h = grad[i].stride(1);
        g.stride_n = grad[i].stride(2);
        const auto gradient = [&](size_t which, const std::optional<Tensor> &of) -> void * {
            const bool needed = of && needs[4 * i + which];
            any = any || needed;
            out.push_back(!needed ? nothing(x[i]) : which == 0 ? token_gradient_like(*of) : gradient_like(*of));
            return needed ? out.back().mutable_data_ptr() : nullptr;
        };
        const auto parameter_gradient = [&](size_t which, const std::optional<Tensor> &of) -> ParameterGradient {
            void *const data = gradient(which, of);
            return {data, of ? dtype_of(op, "parameter", *of) : DType::f32};
        };
        g.x = gradient(0, a.x[i]);
        if (g.x) {
            g.x_stride_b = out.back().stride(0);
            g.x_stride_h = out.back().stride(1);
            g.x_stride_n = out.back().stride(2);
        }
        g.weight = parameter_gradient(1, a.weight[i]);
        g.norm_weight = parameter_gradient(2, a.norm_weight[i]);
        g.norm_bias = parameter_gradient(3, a.norm_bias[i]);
    }
    if (any)
        run(op, a.x[0], problem);
    return out;
}

} // namespace
} // namespace mvit::bindings

STABLE_TORCH_LIBRARY_IMPL(MVIT_OPS, MVIT_DISPATCH_KEY, m) {
    m.impl("pool3d_norm", TORCH_BOX(&mvit::bindings::pool3d_norm));
    m.impl("qkv_pool3d_norm", TORCH_BOX(&mvit::bindings::qkv_pool3d_norm));
    m.impl("qkv_pool3d_norm_backward", TORCH_BOX(&mvit::bindings::qkv_pool3d_norm_backward));
}
