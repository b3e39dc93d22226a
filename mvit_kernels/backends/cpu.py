"""C++ SIMD kernels on the CPU (csrc/cpu), one build per instruction-set level, chosen when the library loads."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .. import _library
from ..problem import Problem
from .compiled import CompiledBackend

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class CpuBackend(CompiledBackend):
    name = "cpu"

    def unavailable(self) -> str | None:
        return _library.load_error()

    def reasons_not_supported(self, problem: Problem) -> Iterator[str]:
        missing = self.unavailable()
        if missing is not None:
            yield missing
        if problem.device != "cpu":
            yield f"device {problem.device}: cpu"
        if problem.dtype not in DTYPES:
            yield f"dtype {problem.dtype}: float32, bfloat16, float16 or float64"

    def variant(self) -> str | None:
        return _library.cpu_level()
