"""Stochastic depth (arXiv 1603.09382), per sample."""

from __future__ import annotations

from torch import Tensor, nn

from . import arguments


class DropPath(nn.Module):
    """Zero whole samples with probability `drop_prob` in training, and scale the others by 1 / (1 - drop_prob)."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        arguments.probability("DropPath", "drop_prob", drop_prob)
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> (B, ...), samples dropped along B."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1.0 - self.drop_prob
        kept = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(keep)
        return x * (kept / keep if keep > 0.0 else kept)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}"
