"""C++ SIMD kernels on the CPU (csrc/cpu), one build per instruction-set level, chosen when the library loads."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .. import _library
from ..problem import NormMlpProblem, PooledQueryProblem, Problem
from .compiled import CompiledBackend

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MLP_BYTES = 16 << 20
"""Of both layers' weights, in float32, up to which `norm_mlp` is faster than its parts: it reads them again for every
hundred rows or so, from a cache that must hold them (docs/performance.md)."""


class CpuBackend(CompiledBackend):
    name = "cpu"

    def serves(self, device: str) -> bool:
        return device == "cpu"

    def unavailable(self) -> str | None:
        return _library.load_error()

    def reasons_not_supported(self, problem: Problem) -> Iterator[str]:
        missing = self.unavailable()
        if missing is not None:
            yield missing
        if not self.serves(problem.device):
            yield f"device {problem.device}: cpu"
        if problem.dtype not in DTYPES:
            yield f"dtype {problem.dtype}: float32, bfloat16, float16 or float64"
        if isinstance(problem, PooledQueryProblem):
            yield f"{problem.op}: pooling and attention one after the other"
        if isinstance(problem, NormMlpProblem) and problem.needs_grad:
            yield f"{problem.op} with gradient: layer_norm and linear one after the other"

    def gains_by_norm_mlp(self, problem: NormMlpProblem) -> bool:
        return 4 * problem.hidden * (problem.channels + problem.outputs) <= MLP_BYTES

    def variant(self) -> str | None:
        return _library.cpu_level()
