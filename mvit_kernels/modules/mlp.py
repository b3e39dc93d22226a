"""The two-layer perceptron of a transformer block, with SlowFast's parameter names."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from . import arguments


class Mlp(nn.Module):
    """fc2(act(fc1(x))), with dropout behind the activation and behind fc2."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        arguments.probability("Mlp", "drop_rate", drop_rate)
        hidden_features = hidden_features or in_features
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.act = act_layer()
        self.fc2 = nn.Linear(hidden_features, out_features or in_features)
        self.drop = nn.Dropout(drop_rate) if drop_rate > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in_features) -> (..., out_features)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
