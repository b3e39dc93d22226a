"""What `bench` measured of one model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..accuracy import Difference, Verdict
from ..measure import Spread, Timings
from .workload import Workload

EAGER, FUSED = "eager", "mvit_kernels"


@dataclass(frozen=True)
class Result:
    """One model's figures. Seconds, bytes and logits by name: "eager" and "mvit_kernels"."""

    workload: Workload
    timings: Timings
    memory: dict[str, int]
    logits: dict[str, Tensor]
    difference: Difference
    verdict: Verdict | None
    layers: list[str]
    left_alone: list[str]

    @property
    def passed(self) -> bool:
        return self.verdict is None or self.verdict.max_passed

    @property
    def speedup(self) -> Spread:
        return self.timings.speedup(FUSED, over=EAGER)

    def top(self, name: str, sample: int, count: int = 5) -> list[int]:
        """Class numbers of the largest logits, largest first."""
        logits = self.logits[name][sample].float()
        return logits.topk(min(count, logits.numel())).indices.tolist()
