"""Finding the fastest launch of each matrix kernel: candidates, and the choice among measured times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from .launch import Launch
from .tuned import Row

KERNELS = ("forward", "grad_q", "grad_kv")


@dataclass(frozen=True)
class Key:
    """What a row of the launch table is found by."""

    arch: str
    kernel: str
    dtype: str
    head_dim: int
    keys: int


@dataclass(frozen=True)
class Result:
    key: Key
    launch: Launch
    seconds: float
    failed: tuple[str, ...]
    """Candidates that do not run on this GPU, with its words."""

    @property
    def row(self) -> Row:
        k, c = self.key, self.launch
        return (k.arch, k.kernel, k.dtype, k.head_dim, k.keys, c.block_m, c.block_n, c.warps, c.stages)


def candidates(key: Key) -> Iterator[Launch]:
    """Launches worth a measurement: tiles that a GPU's registers can hold, at least 16 rows to a warp."""
    sizes = (16, 32) if key.dtype == "float32" else (32, 64, 128)
    stages = (1,) if key.dtype == "float32" else (1, 2, 3)
    for block_m, block_n, warps, stage in product(sizes, sizes, (4, 8), stages):
        rows = block_n if key.kernel == "grad_kv" else block_m
        if key.dtype == "float32" or (rows >= 8 * warps and block_m * block_n <= 128 * 64):
            yield Launch(block_m, block_n, warps, stage)


def tune(key: Key, seconds: Callable[[Key, Launch], float]) -> Result | None:
    """The fastest candidate by `seconds`, which may raise where one can't run; None where none runs."""
    times: list[tuple[float, Launch]] = []
    failed = []
    for launch in candidates(key):
        try:
            times.append((seconds(key, launch), launch))
        except RuntimeError as error:  # out of shared memory or registers
            failed.append(f"{launch}: {str(error).splitlines()[0]}")
    if not times:
        return None
    best, launch = min(times, key=lambda pair: pair[0])
    return Result(key, launch, best, tuple(failed))
