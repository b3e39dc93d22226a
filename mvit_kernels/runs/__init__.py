"""What `pytest benchmarks/` writes: read it, compare two of them, show one."""

from .compare import Comparison, compare
from .records import KERNELS, MEASURED, Row, Run, RunError, load, save

__all__ = ["KERNELS", "MEASURED", "Comparison", "Row", "Run", "RunError", "compare", "load", "save"]
