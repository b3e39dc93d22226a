"""examples/cpp/attention_cuda.cpp, unchanged, on the emulation: a few lines stand in for the CUDA runtime."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cuda.conftest import ROOT, build_emulation

RUNTIME = """
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
enum cudaError_t { cudaSuccess, cudaErrorNoDevice };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
using cudaStream_t = uint64_t *; // the emulation's stream is the address of its seed
inline const char *cudaGetErrorString(cudaError_t) { return "no device"; }
inline cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaMalloc(void **data, size_t bytes) {
    *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    std::memset(*data, 0xff, bytes); // NaN
    return cudaSuccess;
}
inline cudaError_t cudaFree(void *data) { return std::free(data), cudaSuccess; }
inline cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
    return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
    return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaStreamCreate(cudaStream_t *stream) { return *stream = new uint64_t(7), cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
"""


def test_the_cpp_example_computes_what_it_should(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    objects = sorted((build_emulation("emulation") / "CMakeFiles" / "mvit_emulated_kernels.dir").rglob("*.o"))
    (tmp_path / "cuda_runtime_api.h").write_text(RUNTIME)
    source, program = ROOT / "examples" / "cpp" / "attention_cuda.cpp", tmp_path / "attention_cuda"
    command = [compiler, "-std=c++17", "-O1", "-I", tmp_path, "-I", ROOT / "csrc", source, *objects, "-o", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("pooling attention, largest error ")
