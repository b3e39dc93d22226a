// mvit_kernels::linear, layer_norm and norm_mlp on the CPU.
#include "common/linear.h"
#include "bindings/cpu/run.h"

namespace mvit::bindings {
namespace {

bool widens(DType narrow, DType wide) {
    return narrow == wide || (wide == DType::f32 && (narrow == DType::bf16 || narrow == DType::f16));
}

// (..., C) as rows of equal distance: itself, or a contiguous copy.
Tensor rows_of(const char *op, const char *argument, const Tensor &tensor, int64_t channels) {
    check_device(op, argument, tensor, tensor);
    STD_TORCH_CHECK(tensor.dim() >= 1 && tensor.size(tensor.dim() - 1) == channels, op, ": ", argument, " ",
                    shape_of(tensor), " must be (..., ", channels, ")");
    const int64_t last = tensor.dim() - 1;
    bool uniform = channels == 1 || tensor.stride(last) == 1;
    for (int64_t d = last - 1, inner = -1; d >= 0; --d) {
        if (tensor.size(d) == 1)
            continue;
        if (inner >= 0 && tensor.stride(d) != tensor.stride(inner) * tensor.size(inner))
            uniform = false;
        inner = d;
    }
    return uniform ? tensor : torch::stable::contiguous(tensor);
}

int64_t row_count(const Tensor &tensor) {
    int64_t n = 1;
    for (int64_t d = 0; d + 1 < tensor.dim(); ++d)
        n *= tensor.size(d);
    return n;
}

int64_t row_stride(const Tensor &tensor, int64_t channels) {
    for (int64_t d = tensor.dim() - 2; d >= 0; --d)
        if (tensor.size(d) != 1)
            return tensor.stride(d);
    return channels;
}

Activation activation_of(const char *op, const std::string &name) {
    STD_TORCH_CHECK(name == "none" || name == "gelu", op, ": activation is ", name, ", it must be none or gelu");
    return name == "gelu" ? Activation::gelu : Activation::none;
}

// A parameter (channels,), or none; `tensor` keeps what the result points to.
Parameter channels_of(const char *op, const char *argument, std::optional<Tensor> &tensor, int64_t channels,
                      const Tensor &x) {
    if (!tensor)
        return {};
    tensor = parameter(op, argument, *tensor, {channels}, x);
    return as_parameter(op, argument, *tensor);
}

// A weight (out, in) and its bias; `weight` and `bias` keep what the result points to.
Layer layer_of(const char *op, const std::string &name, Tensor &weight, std::optional<Tensor> &bias, const Tensor &x,
               DType dtype) {
    const std::string weight_name = name + "weight", bias_name = name + "bias";
    STD_TORCH_CHECK(weight.dim() == 2, op, ": ", weight_name, " ", shape_of(weight), " must have 2 dims (out, in)");
    check_device(op, weight_name.c_str(), weight, x);
    Layer layer = {};
    layer.out = weight.size(0);
    layer.in = weight.size(1);
    STD_TORCH_CHECK(layer.in >= 1, op, ": ", weight_name, " ", shape_of(weight), " has no inputs");
    if (weight.stride(0) != 1 && weight.stride(1) != 1)
        weight = torch::stable::contiguous(weight);
    layer.weight = as_parameter(op, weight_name.c_str(), weight);
    STD_TORCH_CHECK(widens(dtype, layer.weight.dtype), op, ": ", weight_name, " has dtype ",
                    torch::headeronly::toString(weight.scalar_type()),
                    ", it must be that of the products, or float32 for half ones");
    layer.stride_in = layer.in == 1 ? 1 : weight.stride(1);
    layer.stride_out = layer.out == 1 ? layer.in : weight.stride(0);
    if (layer.stride_in != 1 && layer.stride_out != 1) { // one output whose inputs are strided
        weight = torch::stable::contiguous(weight);
        layer.weight.data = weight.const_data_ptr();
        layer.stride_in = 1;
    }
    layer.bias = channels_of(op, bias_name.c_str(), bias, layer.out, x);
    return layer;
}

// The output (..., out) of a problem on x (..., in), and the residual that it adds; `residual` keeps what the problem
// points to.
template <class Problem>
Tensor output_of(const char *op, Problem &p, const Tensor &x, std::optional<Tensor> &residual, int64_t out) {
    p.y_dtype = residual ? dtype_of(op, "residual", *residual) : p.dtype;
    const auto sizes = x.sizes();
    std::vector<int64_t> shape(sizes.begin(), sizes.end());
    shape.back() = out;
    if (residual) {
        STD_TORCH_CHECK(widens(p.dtype, p.y_dtype), op, ": residual has dtype ",
                        torch::headeronly::toString(residual->scalar_type()),
                        ", it must be that of the products, or float32 for half ones");
        check_shape(op, "residual", *residual, shape);
        residual = rows_of(op, "residual", *residual, out);
        p.residual = residual->const_data_ptr();
        p.residual_stride = row_stride(*residual, out);
    }
    Tensor y = empty(x, shape, scalar_type_of(p.y_dtype));
    p.y = y.mutable_data_ptr();
    return y;
}

Tensor linear(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> residual,
              std::string activation) {
    const char *const op = "linear";
    LinearProblem p = {};
    p.dtype = dtype_of(op, "x", x);
    p.layer = layer_of(op, "", weight, bias, x, p.dtype);
    const int64_t in = p.layer.in, out = p.layer.out;
    x = rows_of(op, "x", x, in);
    p.rows = row_count(x);
    p.x = x.const_data_ptr();
    p.x_stride = row_stride(x, in);
    p.activation = activation_of(op, activation);
    Tensor y = output_of(op, p, x, residual, out);
    if (p.rows > 0 && out > 0) {
        const cpu::Kernels &kernels = cpu::kernels();
        run_kernel(x, p, kernels.linear_scratch, kernels.linear);
    }
    return y;
}

Tensor layer_norm(Tensor x, std::optional<Tensor> weight, std::optional<Tensor> bias, double eps, ScalarType dtype) {
    const char *const op = "layer_norm";
    LayerNormProblem p = {};
    p.dtype = dtype_of(op, "x", x);
    STD_TORCH_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) >= 1, op, ": x ", shape_of(x), " must be (..., C), C >= 1");
    p.channels = x.size(x.dim() - 1);
    x = rows_of(op, "x", x, p.channels);
    p.rows = row_count(x);
    p.x = x.const_data_ptr();
    p.x_stride = row_stride(x, p.channels);
    p.weight = channels_of(op, "weight", weight, p.channels, x);
    p.bias = channels_of(op, "bias", bias, p.channels, x);
    p.eps = eps;
    const auto sizes = x.sizes();
    Tensor y = empty(x, std::vector<int64_t>(sizes.begin(), sizes.end()), dtype);
    p.y_dtype = dtype_of(op, "dtype", y);
    STD_TORCH_CHECK(widens(p.y_dtype, p.dtype), op, ": dtype is ", torch::headeronly::toString(dtype),
                    ", it must be that of x, or a half one for a float32 x");
    p.y = y.mutable_data_ptr();
    if (p.rows > 0) {
        const cpu::Kernels &kernels = cpu::kernels();
        run_kernel(x, p, kernels.layer_norm_scratch, kernels.layer_norm);
    }
    return y;
}

Tensor norm_mlp(Tensor x, std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias, double eps,
                Tensor fc1_weight, std::optional<Tensor> fc1_bias, Tensor fc2_weight, std::optional<Tensor> fc2_bias,
                std::optional<Tensor> residual, ScalarType dtype) {
    const char *const op = "norm_mlp";
    NormMlpProblem p = {};
    p.x_dtype = dtype_of(op, "x", x);
    p.dtype = dtype_of(op, "dtype", empty(x, {0}, dtype));
    STD_TORCH_CHECK(widens(p.dtype, p.x_dtype), op, ": dtype is ", torch::headeronly::toString(dtype),
                    ", it must be that of x, or a half one for a float32 x");
    p.fc1 = layer_of(op, "fc1_", fc1_weight, fc1_bias, x, p.dtype);
    p.fc2 = layer_of(op, "fc2_", fc2_weight, fc2_bias, x, p.dtype);
    const int64_t channels = p.fc1.in, out = p.fc2.out;
    STD_TORCH_CHECK(p.fc2.in == p.fc1.out, op, ": fc2_weight ", shape_of(fc2_weight), " must be (out, ", p.fc1.out,
                    "), as fc1_weight ", shape_of(fc1_weight), " has it");
    x = rows_of(op, "x", x, channels);
    p.rows = row_count(x);
    p.x = x.const_data_ptr();
    p.x_stride = row_stride(x, channels);
    p.norm_weight = channels_of(op, "norm_weight", norm_weight, channels, x);
    p.norm_bias = channels_of(op, "norm_bias", norm_bias, channels, x);
    p.eps = eps;
    if (!residual)
        residual = x;
    Tensor y = output_of(op, p, x, residual, out);
    if (p.rows > 0 && out > 0) {
        const cpu::Kernels &kernels = cpu::kernels();
        run_kernel(x, p, kernels.norm_mlp_scratch, kernels.norm_mlp);
    }
    return y;
}

} // namespace
} // namespace mvit::bindings

STABLE_TORCH_LIBRARY_IMPL(MVIT_OPS, MVIT_DISPATCH_KEY, m) {
    m.impl("linear", TORCH_BOX(&mvit::bindings::linear));
    m.impl("layer_norm", TORCH_BOX(&mvit::bindings::layer_norm));
    m.impl("norm_mlp", TORCH_BOX(&mvit::bindings::norm_mlp));
}
