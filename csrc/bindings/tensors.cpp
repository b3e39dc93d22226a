#include "bindings/tensors.h"

namespace mvit::bindings {

std::string shape_of(const Tensor &tensor) {
    std::string text;
    for (int64_t size : tensor.sizes())
        text += (text.empty() ? "(" : ", ") + std::to_string(size);
    return text.empty() ? "()" : text + ")";
}

DType dtype_of(const char *op, const char *argument, const Tensor &tensor) {
    switch (tensor.scalar_type()) {
    case ScalarType::Float:
        return DType::f32;
    case ScalarType::BFloat16:
        return DType::bf16;
    case ScalarType::Half:
        return DType::f16;
    case ScalarType::Double:
        return DType::f64;
    default:
        STD_TORCH_CHECK(false, op, ": ", argument, " has dtype ", torch::headeronly::toString(tensor.scalar_type()),
                        ", it must be float32, bfloat16, float16 or float64");
    }
}

ScalarType scalar_type_of(DType dtype) {
    switch (dtype) {
    case DType::bf16:
        return ScalarType::BFloat16;
    case DType::f16:
        return ScalarType::Half;
    case DType::f64:
        return ScalarType::Double;
    default:
        return ScalarType::Float;
    }
}

ScalarType accumulator_type_of(DType dtype) { return dtype == DType::f64 ? ScalarType::Double : ScalarType::Float; }

namespace {

bool starts_aligned(const Tensor &tensor) {
    return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % uintptr_t(access().bytes) == 0;
}

} // namespace

Tensor rows(const char *op, const char *argument, const Tensor &tensor, DType dtype, const Tensor &like) {
    check_device(op, argument, tensor, like);
    STD_TORCH_CHECK(tensor.dim() == 4, op, ": ", argument, " ", shape_of(tensor), " must have 4 dims (B, H, N, D)");
    STD_TORCH_CHECK(tensor.scalar_type() == scalar_type_of(dtype), op, ": ", argument, " has dtype ",
                    torch::headeronly::toString(tensor.scalar_type()), ", it must be ",
                    torch::headeronly::toString(scalar_type_of(dtype)));
    STD_TORCH_CHECK(tensor.size(3) >= 1, op, ": ", argument, " ", shape_of(tensor), " has head dim 0");
    return tensor.stride(3) == 1 || tensor.size(3) == 1 ? tensor : torch::stable::contiguous(tensor);
}

Tensor tokens(const char *op, const char *argument, const Tensor &tensor, DType dtype, const Tensor &like) {
    const Tensor found = rows(op, argument, tensor, dtype, like);
    const int64_t unit = access().channels;
    STD_TORCH_CHECK(found.size(3) % unit == 0, op, ": ", argument, " ", shape_of(found), " has head dim ",
                    found.size(3), ", it must be a multiple of ", unit);
    bool aligned = starts_aligned(found);
    for (int64_t dim = 0; dim < 3; ++dim)
        aligned = aligned && (found.size(dim) <= 1 || found.stride(dim) % unit == 0);
    // New memory is aligned, and with a whole number of units per row so is each row of it.
    return aligned ? found : torch::stable::clone(found);
}

void check_shape(const char *op, const char *argument, const Tensor &tensor, const std::vector<int64_t> &shape) {
    bool fits = tensor.dim() == int64_t(shape.size());
    std::string wanted;
    for (size_t i = 0; i < shape.size(); ++i) {
        fits = fits && tensor.size(int64_t(i)) == shape[i];
        wanted += (i ? ", " : "") + std::to_string(shape[i]);
    }
    STD_TORCH_CHECK(fits, op, ": ", argument, " ", shape_of(tensor), " must be (", wanted, ")");
}

Tensor parameter(const char *op, const char *argument, const Tensor &tensor, const std::vector<int64_t> &shape,
                 const Tensor &like) {
    check_shape(op, argument, tensor, shape);
    check_device(op, argument, tensor, like);
    dtype_of(op, argument, tensor);
    const Tensor found = tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
    return starts_aligned(found) ? found : torch::stable::clone(found);
}

Parameter as_parameter(const char *op, const char *argument, const Tensor &tensor) {
    return {tensor.const_data_ptr(), dtype_of(op, argument, tensor)};
}

Size3 size3(const char *op, const char *argument, const std::vector<int64_t> &list, size_t first, int64_t least) {
    STD_TORCH_CHECK(list.size() >= first + 3, op, ": ", argument, " has ", list.size(), " entries, it must have ",
                    first + 3, " or more");
    for (size_t i = first; i < first + 3; ++i)
        STD_TORCH_CHECK(list[i] >= least && list[i] < (int64_t(1) << 31), op, ": ", argument, " has the entry ",
                        list[i], ", it must be at least ", least);
    return {list[first], list[first + 1], list[first + 2]};
}

Tensor empty(const Tensor &like, const std::vector<int64_t> &shape, ScalarType dtype) {
    return torch::stable::new_empty(like, shape, dtype);
}

Tensor gradient_like(const Tensor &like) {
    const auto sizes = like.sizes();
    return empty(like, std::vector<int64_t>(sizes.begin(), sizes.end()), like.scalar_type());
}

Tensor nothing(const Tensor &like) { return empty(like, {0}, like.scalar_type()); }

} // namespace mvit::bindings
