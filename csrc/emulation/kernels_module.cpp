#include "emulation/module.h"

namespace mvit::emulation {

void add_kernels(pybind11::module_ &) {}

} // namespace mvit::emulation
