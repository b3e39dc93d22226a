// The op schemas this library was compiled for: INTERFACE in mvit_kernels/_library.py, which reads it before any call.
#include <cstdint>

extern "C" __attribute__((visibility("default"))) int32_t mvit_kernels_interface() { return 4; }
