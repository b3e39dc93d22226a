"""Choosing block sizes, warps and splits: pure Python on shapes, from the launch table or the user's measured one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from . import launch_table, tuned
from .blocks import ceil_div, power_of_two

PROGRAMS = 512
"""Programs that keep some 130 multiprocessors busy; sums over many tokens are split until there are so many."""


@dataclass(frozen=True)
class Launch:
    """Block sizes and compiler options of one matrix kernel."""

    block_m: int
    block_n: int
    warps: int
    stages: int


def family(capability: tuple[int, int] | None) -> str:
    """The architecture family of a compute capability: "sm80", "sm90", "sm100", "sm120"; for None, AMD, "gfx9"."""
    if capability is None:
        return "gfx9"
    major, _ = capability
    return {8: "sm80", 9: "sm90", 10: "sm100", 12: "sm120"}.get(major, f"sm{major}0")


_forced: ContextVar[tuple[str, Launch] | None] = ContextVar("mvit_kernels_triton_launch", default=None)


@contextmanager
def launch_as(kernel: str, launch: Launch) -> Iterator[None]:
    """Launch a matrix kernel so inside the `with`, whatever the tables say."""
    token = _forced.set((kernel, launch))
    try:
        yield
    finally:
        _forced.reset(token)


def matrix_kernel(kernel: str, arch: str, dtype: torch.dtype, head_dim: int, keys: int) -> Launch:
    """Launch of "forward", "grad_q" or "grad_kv"; the user's tuned table comes first (`tuned.py`)."""
    forced = _forced.get()
    if forced is not None and forced[0] == kernel:
        return forced[1]
    kind = "float32" if dtype == torch.float32 else "half"
    for rows in (tuned.rows(), launch_table.ROWS):
        for wanted in (arch, "any"):
            for row_arch, row_kernel, row_dtype, row_dim, row_keys, *choice in rows:
                fits = head_dim <= row_dim and (row_keys == 0 or keys <= row_keys)
                if (row_arch, row_kernel, row_dtype) == (wanted, kernel, kind) and fits:
                    return Launch(*choice)
    raise AssertionError(f"no row for {kernel} {arch} {kind} head dim {head_dim} keys {keys}")


def pool_rows(parts: tuple[int, int], outputs: int, values: int) -> tuple[int, int]:
    """(output tokens, warps) of one pooling program of about `values` values, half of that for a wide head."""
    width = sum(parts)
    rows = max(1, min(32, values // power_of_two(width) // (2 if width >= 128 else 1)))
    return min(rows, power_of_two(outputs)), 4


def splits(programs: int, steps: int) -> int:
    """Into how many parts a sum of `steps` steps is cut where `programs` run anyway."""
    return max(1, min(ceil_div(PROGRAMS, max(programs, 1)), ceil_div(steps, 4)))
