// The parts of the Python module mvit_emulation.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace mvit::emulation {

void add_primitives(pybind11::module_ &m); // each primitive by itself, and planted bugs
void add_attention_kernels(pybind11::module_ &m);
void add_pooled_query_kernel(pybind11::module_ &m);
void add_shared_memory(pybind11::module_ &m);
void add_attention_backward_kernels(pybind11::module_ &m);
void add_token_kernels(pybind11::module_ &m);
void add_token_backward_kernels(pybind11::module_ &m);
void add_plans(pybind11::module_ &m);
void add_products(pybind11::module_ &m);

} // namespace mvit::emulation
