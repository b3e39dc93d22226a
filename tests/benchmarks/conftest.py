"""The suite's modules import each other by name, as `pytest benchmarks/` has them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
