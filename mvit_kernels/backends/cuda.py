"""CUDA C++ kernels on NVIDIA GPUs (csrc/cuda), compiled ahead of time for the architectures in the library."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .. import _library, reference
from ..problem import (
    AttentionProblem,
    LayerNormProblem,
    LinearProblem,
    NormMlpProblem,
    PooledQueryProblem,
    PoolProblem,
    Problem,
    QkvPoolProblem,
)
from ..tracing import constant_in_graphs
from . import query_pooling_model
from .compiled import CompiledBackend, tf32_allowed

LEAST_CAPABILITY = (8, 0)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_HEAD_DIM = 128
"""Of attention, and of pooling with a norm."""


# What fits in the shared memory of every GPU, as csrc/common/limits.h has it.
def max_taps(mode: str) -> int:
    """Taps of a pooling's window."""
    return 176 if mode == "conv" else 65536


MAX_ROWS_WITH_GRADIENT = ({48: 96, 64: 80, 80: 64, 96: 64, 128: 32}, {48: 114, 64: 90, 80: 66, 96: 42, 128: 26})
"""Entries of a row by the largest head dim, of 16-bit numbers and of float32."""


def max_row(dtype: torch.dtype, head_dim: int, needs_grad: bool) -> int:
    """Entries of a row of relative position."""
    if needs_grad:
        rows = MAX_ROWS_WITH_GRADIENT[dtype == torch.float32]
        return rows[next(dim for dim in rows if min(head_dim, MAX_HEAD_DIM) <= dim)]
    return 190 if dtype != torch.float32 else 150 if head_dim <= 96 else 95


MAX_QUERY_TAPS = 144
"""Taps of a window that pools queries inside attention, as csrc/common/pooled_query.h has it."""
MAX_QUERY_ROW = 48
"""Entries of a row of relative position there: kMaxProductEntries of csrc/common/attention_tiles.h."""


@constant_in_graphs  # torch.compile calls it once, while tracing
def multiprocessors() -> int:
    """Of the current GPU."""
    return torch.cuda.get_device_properties().multi_processor_count


def device_capability() -> tuple[int, int] | None:
    """Of the current GPU; None where torch sees none."""
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def unsupported_architecture(capability: tuple[int, int], architectures: tuple[str, ...]) -> str | None:
    """Why code for `architectures` ("80", "90a", PTX as "120+PTX") does not run on a GPU; None if it does.

    Code for sm_86 runs on its own major version from minor 6 on, one for sm_90a on sm_90 alone; PTX is compiled by the
    driver for that and any newer GPU.
    """
    major, minor = capability
    if capability < LEAST_CAPABILITY:
        return f"this GPU is sm_{major}{minor}: sm_80 or newer"
    for architecture in architectures:
        number = architecture.removesuffix("+PTX")
        of = int(number.rstrip("af")[:-1]), int(number.rstrip("af")[-1])
        if number.endswith("a"):
            runs = of == capability
        elif architecture.endswith("+PTX"):
            runs = of <= capability
        else:
            runs = of[0] == major and of[1] <= minor
        if runs:
            return None
    built = ", ".join(f"sm_{name}" for name in architectures)
    return f"the CUDA library was built for {built or 'no architecture'}; this GPU is sm_{major}{minor}"


class CudaBackend(CompiledBackend):
    name = "cuda"
    device = "cuda"
    pools_queries = True

    def serves(self, device: str) -> bool:
        return device == self.device

    def unavailable(self) -> str | None:
        missing = _library.cuda_load_error()
        if missing is not None:
            return missing
        capability = device_capability()
        if capability is None:
            return "torch sees no CUDA GPU on this machine"
        return unsupported_architecture(capability, _library.cuda_architectures())

    def reasons_not_supported(self, problem: Problem) -> Iterator[str]:
        if not self.serves(problem.device):
            # No more is asked: a process that works on the CPU is not to start CUDA, and may have been forked.
            yield f"device {problem.device}: {self.device}"
            return
        missing = self.unavailable()
        if missing is not None:
            yield missing
        if isinstance(problem, (LinearProblem, LayerNormProblem, NormMlpProblem)):
            return
        if problem.dtype not in DTYPES:
            yield f"dtype {problem.dtype}: float32, bfloat16 or float16"
        if problem.head_dim % 8:
            yield f"head dim {problem.head_dim}: a multiple of 8"
        for branch in _branches(problem):
            if branch.norm and branch.head_dim > MAX_HEAD_DIM:
                yield f"head dim {branch.head_dim} with a norm: at most {MAX_HEAD_DIM}"
            kt, kh, kw = branch.pool.kernel
            most = max_taps(branch.pool.mode)
            if kt * kh * kw > most:
                yield f"{branch.pool.mode} kernel of {kt * kh * kw} taps: at most {most}"
        if isinstance(problem, (AttentionProblem, PooledQueryProblem)) and problem.head_dim > MAX_HEAD_DIM:
            yield f"head dim {problem.head_dim}: at most {MAX_HEAD_DIM}"
        if isinstance(problem, AttentionProblem):
            most = max_row(problem.dtype, problem.head_dim, problem.needs_grad)
            if problem.rel_pos_entries > most:
                with_gradient = " with gradient" if problem.needs_grad else ""
                yield f"rel-pos rows of {problem.rel_pos_entries} entries{with_gradient}: at most {most}"
        if isinstance(problem, PooledQueryProblem):
            yield from _not_pooled_in_attention(problem)

    def reasons_to_pool_before(self, problem: PooledQueryProblem) -> Iterator[str]:
        reason = query_pooling_model.reason_to_pool_before(problem, multiprocessors())
        if reason is not None:
            yield reason

    # cuBLAS is the right kernel for these; a process that asks for this backend gets it.
    linear = staticmethod(reference.linear)
    layer_norm = staticmethod(reference.layer_norm)
    norm_mlp = staticmethod(reference.norm_mlp)

    def notes(self, problem: Problem) -> Iterator[str]:
        if isinstance(problem, (LinearProblem, LayerNormProblem, NormMlpProblem)):
            yield "PyTorch's own kernel"
        if isinstance(problem, PooledQueryProblem):
            saved = problem.attention.batch * problem.attention.heads * problem.attention.num_q
            saved *= query_pooling_model.bytes_saved(problem)
            yield f"q pooled inside attention: {saved / 1e6:.1f} MB less through memory (model)"

    def variant(self) -> str | None:
        if self.unavailable() is not None:
            return None
        major, minor = torch.cuda.get_device_capability()
        return f"sm_{major}{minor}"

    def tf32(self, dtype: torch.dtype) -> bool:
        # torch.compile guards the setting: a graph is compiled again when it changes.
        return dtype == torch.float32 and tf32_allowed()


def _branches(problem: Problem) -> tuple[PoolProblem, ...]:
    if isinstance(problem, QkvPoolProblem):
        return problem.branches
    if isinstance(problem, PooledQueryProblem):
        return (problem.pool,)
    return (problem,) if isinstance(problem, PoolProblem) else ()


def _not_pooled_in_attention(problem: PooledQueryProblem) -> Iterator[str]:
    if problem.needs_grad:
        yield "q pooled inside attention with gradient: inference alone"
    if problem.dtype == torch.float32:
        yield "q pooled inside attention in float32: bfloat16 or float16"
    kt, kh, kw = problem.pool.pool.kernel
    if kt * kh * kw > MAX_QUERY_TAPS:
        yield f"a window of {kt * kh * kw} taps inside attention: at most {MAX_QUERY_TAPS}"
    if problem.attention.rel_pos_entries > MAX_QUERY_ROW:
        entries = problem.attention.rel_pos_entries
        yield f"rel-pos rows of {entries} entries made inside attention: at most {MAX_QUERY_ROW}"
