"""How a figure grows: the exponent of a power law through measured points."""

from __future__ import annotations

import math
from collections.abc import Sequence


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The slope of the least-squares line through (log x, log y): 1 is linear, 2 quadratic.

    None for fewer than three different x, or a value that is not positive.
    """
    if len({x for x, _ in points}) < 3 or any(x <= 0 or y <= 0 for x, y in points):
        return None
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - mean_x) ** 2 for x in xs)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
