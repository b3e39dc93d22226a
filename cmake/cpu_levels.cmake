# The instruction-set levels to compile, lowest first.
#
# Sets MVIT_CPU_LEVELS, MVIT_CPU_FLAGS_<level> for each, and MVIT_BASELINE_FLAGS for what runs before a level is chosen.
# A level the compiler does not know is left out, with a line that says so; the lowest one is required.

include(CheckCXXCompilerFlag)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(levels baseline avx2 avx512 avx512_bf16)
  set(MVIT_CPU_FLAGS_baseline -march=x86-64-v2)
  set(MVIT_CPU_FLAGS_avx2 ${MVIT_CPU_FLAGS_baseline} -mavx2 -mfma -mf16c -mbmi2)
  set(MVIT_CPU_FLAGS_avx512 ${MVIT_CPU_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
  set(MVIT_CPU_FLAGS_avx512_bf16 ${MVIT_CPU_FLAGS_avx512} -mavx512bf16)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(levels neon)
  set(MVIT_CPU_FLAGS_neon -march=armv8-a)
else()
  message(FATAL_ERROR "processor ${CMAKE_SYSTEM_PROCESSOR}: the CPU kernels are written for x86-64 and aarch64")
endif()

set(MVIT_CPU_LEVELS)
foreach(level IN LISTS levels)
  string(JOIN " " flags ${MVIT_CPU_FLAGS_${level}})
  check_cxx_compiler_flag("${flags}" MVIT_COMPILER_HAS_${level})
  if(MVIT_COMPILER_HAS_${level})
    list(APPEND MVIT_CPU_LEVELS ${level})
  else()
    message(STATUS "level ${level} left out: ${CMAKE_CXX_COMPILER} does not take ${flags}")
  endif()
endforeach()

list(GET levels 0 lowest)
if(NOT lowest IN_LIST MVIT_CPU_LEVELS)
  message(FATAL_ERROR "the compiler does not take '${MVIT_CPU_FLAGS_${lowest}}': GCC 11, Clang 12 or newer is needed")
endif()
set(MVIT_BASELINE_FLAGS ${MVIT_CPU_FLAGS_${lowest}})
