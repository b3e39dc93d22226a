// What the CUDA kernels run besides the problems of bindings/device.h.
#pragma once

#include "bindings/device.h"
#include "common/pooled_query.h"

namespace mvit::bindings {

void run(const char *op, const Tensor &like, const PooledQueryProblem &problem);

} // namespace mvit::bindings
