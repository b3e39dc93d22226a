// Chooses an instruction-set level, once, by CPUID. Compiled once with the baseline's flags.
#include "cpu/kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

// CMake defines MVIT_CPU_HAS_<level> for the levels it compiled.
#define MVIT_LEVEL_DECLARED(name)                                                                                      \
    namespace name {                                                                                                   \
    extern const Kernels kernels;                                                                                      \
    }

namespace mvit::cpu {

#ifdef MVIT_CPU_HAS_baseline
MVIT_LEVEL_DECLARED(baseline)
#endif
#ifdef MVIT_CPU_HAS_avx2
MVIT_LEVEL_DECLARED(avx2)
#endif
#ifdef MVIT_CPU_HAS_avx512
MVIT_LEVEL_DECLARED(avx512)
#endif
#ifdef MVIT_CPU_HAS_avx512_bf16
MVIT_LEVEL_DECLARED(avx512_bf16)
#endif
#ifdef MVIT_CPU_HAS_neon
MVIT_LEVEL_DECLARED(neon)
#endif

namespace {

struct Level {
    const Kernels *kernels;
    bool supported; // by this CPU and its operating system
};

// Lowest first. __builtin_cpu_supports also asks the operating system whether it saves the wide registers.
#if defined(__x86_64__)
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const Level kLevels[] = {
#ifdef MVIT_CPU_HAS_neon
    {&neon::kernels, true},
#endif
#ifdef MVIT_CPU_HAS_baseline
    {&baseline::kernels, true},
#endif
#ifdef MVIT_CPU_HAS_avx2
    {&avx2::kernels, has_avx2()}, // every CPU with AVX2 has F16C
#endif
#ifdef MVIT_CPU_HAS_avx512
    {&avx512::kernels, has_avx512()},
#endif
#ifdef MVIT_CPU_HAS_avx512_bf16
    {&avx512_bf16::kernels, has_avx512() && __builtin_cpu_supports("avx512bf16")},
#endif
};

std::string names(bool only_supported) {
    std::string list;
    for (const Level &level : kLevels)
        if (level.supported || !only_supported)
            list += (list.empty() ? "" : ",") + std::string(level.kernels->level);
    return list;
}

const Kernels *named(const std::string &name) {
    for (const Level &level : kLevels)
        if (level.supported && name == level.kernels->level)
            return level.kernels;
    throw std::runtime_error("MVIT_KERNELS_CPU_LEVEL \"" + name + "\": this CPU and build have " + names(true));
}

const Kernels *chosen() {
    const char *name = std::getenv("MVIT_KERNELS_CPU_LEVEL");
    if (name && *name)
        return named(name);
    const Kernels *best = nullptr;
    for (const Level &level : kLevels)
        if (level.supported)
            best = level.kernels;
    return best;
}

} // namespace

const Kernels &kernels() {
    static const Kernels *const level = chosen();
    return *level;
}

} // namespace mvit::cpu

// For `python -m mvit_kernels info`, which reads them through ctypes.
#define MVIT_EXPORT extern "C" __attribute__((visibility("default")))

// The level in use; nullptr if MVIT_KERNELS_CPU_LEVEL names one that can't be used.
MVIT_EXPORT const char *mvit_kernels_cpu_level() {
    try {
        return mvit::cpu::kernels().level;
    } catch (const std::runtime_error &) {
        return nullptr;
    }
}

// The levels built in, lowest first, separated by commas.
MVIT_EXPORT const char *mvit_kernels_cpu_levels() {
    static const std::string list = mvit::cpu::names(false);
    return list.c_str();
}

// For benchmarks: multiply-adds of a dtype (0 float32, 1 bfloat16) that this call has done, on the calling thread.
MVIT_EXPORT int64_t mvit_kernels_cpu_multiply_adds(int32_t dtype, int64_t rounds) {
    return mvit::cpu::kernels().multiply_add_peak(mvit::DType(dtype), rounds);
}
