#include "emulation/module.h"
#include "emulation/block.h"

PYBIND11_MODULE(mvit_emulation, m) {
    m.doc() = "The sources in csrc/cuda, run on a CPU by csrc/emulation.";
    pybind11::register_exception<mvit::emulation::Error>(m, "Error", PyExc_RuntimeError);
    mvit::emulation::add_primitives(m);
    mvit::emulation::add_attention_kernels(m);
    mvit::emulation::add_pooled_query_kernel(m);
    mvit::emulation::add_shared_memory(m);
    mvit::emulation::add_attention_backward_kernels(m);
    mvit::emulation::add_token_kernels(m);
    mvit::emulation::add_token_backward_kernels(m);
    mvit::emulation::add_plans(m);
    mvit::emulation::add_products(m);
}
