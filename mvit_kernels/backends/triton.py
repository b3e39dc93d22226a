"""Triton kernels on NVIDIA and AMD GPUs: nothing but torch and triton installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from torch.torch_version import TorchVersion

from ..problem import (
    AttentionProblem,
    LayerNormProblem,
    LinearProblem,
    NormMlpProblem,
    PooledQueryProblem,
    Problem,
    RelPosProblem,
)
from ..tracing import constant_in_graphs
from .compiled import CompiledBackend

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 128
LEAST_CAPABILITY = (8, 0)
LEAST_TRITON = "3.6"
"""The version that comes with torch 2.10, the oldest torch this package runs on."""

_HAS_TRITON = find_spec("triton") is not None
_interpreting: ContextVar[bool] = ContextVar("mvit_kernels_triton_interpreting", default=False)


@contextmanager
def interpret_on_cpu() -> Iterator[None]:
    """Let this backend take CPU tensors inside the `with`, by Triton's interpreter: for tests, far slower.

    Needs TRITON_INTERPRET=1 in the environment of the process.

    Raises:
        RuntimeError: TRITON_INTERPRET is not 1, or was set after this package was imported.
    """
    from ..triton_kernels import ops

    if not ops.INTERPRETED:
        raise RuntimeError(
            "interpret_on_cpu: TRITON_INTERPRET is not set, TRITON_INTERPRET=1 before the start is right"
        )
    token = _interpreting.set(True)
    try:
        yield
    finally:
        _interpreting.reset(token)


@constant_in_graphs
def cannot_compile() -> str | None:
    """Why Triton can't compile a kernel in this process, or None. Found once; asks no driver and compiles nothing."""
    return _cannot_compile()


@cache
def _cannot_compile() -> str | None:
    try:
        found = version("triton")
    except PackageNotFoundError:
        found = None  # a build of its own, under another distribution's name
    if found is not None and TorchVersion(found) < LEAST_TRITON:
        return f"triton {found} is too old: {LEAST_TRITON} or newer"
    try:
        import_module("triton")
    except Exception as error:  # a broken build fails in ways of its own
        first_line = (str(error).splitlines() or [""])[0]
        return f"triton can't be imported: {type(error).__name__}: {first_line}"
    # Triton builds its launchers with a C compiler: $CC, else gcc, else clang.
    named = os.environ.get("CC")
    if named is not None:
        if shutil.which(named) is None:
            return f"triton finds no C compiler: CC is {named!r}, which is not a program"
    elif shutil.which("gcc") is None and shutil.which("clang") is None:
        return "triton finds no C compiler: install gcc or clang, or set CC"
    return None


class TritonBackend(CompiledBackend):
    name = "triton"
    namespace = "mvit_kernels_triton"

    def serves(self, device: str) -> bool:
        return device == ("cpu" if _interpreting.get() else "cuda")

    def unavailable(self) -> str | None:
        if not _HAS_TRITON:
            return "triton is not installed: pip install triton"
        if _interpreting.get():
            return None
        if not torch.cuda.is_available():
            return "torch sees no CUDA or HIP GPU on this machine"
        if torch.version.hip is None:
            capability = torch.cuda.get_device_capability()
            if capability < LEAST_CAPABILITY:
                return f"this GPU is sm_{capability[0]}{capability[1]}: sm_80 or newer"
        return cannot_compile()

    def reasons_not_supported(self, problem: Problem) -> Iterator[str]:
        missing = self.unavailable()
        if missing is not None:
            yield missing
        if not self.serves(problem.device):
            yield f"device {problem.device}: cuda"
        if isinstance(problem, (LinearProblem, LayerNormProblem, NormMlpProblem)):
            yield f"{problem.op}: pooling, relative position and attention"
        if isinstance(problem, PooledQueryProblem):
            yield f"{problem.op}: pooling and attention one after the other"
        if problem.dtype not in DTYPES:
            yield f"dtype {problem.dtype}: float32, bfloat16 or float16"
        if isinstance(problem, (AttentionProblem, RelPosProblem)) and problem.head_dim > MAX_HEAD_DIM:
            yield f"head dim {problem.head_dim}: at most {MAX_HEAD_DIM}"

    def variant(self) -> str | None:
        if self.unavailable() is not None or _interpreting.get():
            return None
        if torch.version.hip is not None:
            return torch.cuda.get_device_properties().gcnArchName.partition(":")[0]
        major, minor = torch.cuda.get_device_capability()
        return f"sm_{major}{minor}"
