// What the functions for Python share: from tuples and names to the fields of problem structs.
#pragma once

#include "common/problem.h"
#include "emulation/module.h"

#include <array>
#include <cstring>
#include <new>
#include <string>
#include <utility>

namespace mvit::emulation {

using Strides = std::array<int64_t, 3>; // of batch, head, token

inline Size3 size3(const std::array<int64_t, 3> &grid) { return {grid[0], grid[1], grid[2]}; }

inline DType dtype_of(const std::string &name) {
    return name == "float16" ? DType::f16 : name == "bfloat16" ? DType::bf16 : DType::f32;
}

inline Parameter parameter(const std::pair<uintptr_t, std::string> &of) {
    return {reinterpret_cast<const void *>(of.first), dtype_of(of.second)};
}

// Scratch memory of a launch; bytes of 0xff, which are NaN in every dtype, so that a kernel that reads what it has not
// written shows it.
class Scratch {
public:
    explicit Scratch(int64_t bytes) : data_(::operator new(size_t(bytes), std::align_val_t(256))) {
        std::memset(data_, 0xff, size_t(bytes));
    }
    ~Scratch() { ::operator delete(data_, std::align_val_t(256)); }
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
    void *data() const { return data_; }

private:
    void *data_;
};

} // namespace mvit::emulation
