"""Which implementation runs a problem, and why the others do not."""

from .base import Backend, UnsupportedError
from .registry import (
    Decision,
    available,
    backend_names,
    describe_choice,
    explain,
    get,
    label,
    layer_named,
    reasons_not_supported,
    record,
    select,
    use_backend,
)

__all__ = [
    "Backend",
    "Decision",
    "UnsupportedError",
    "available",
    "backend_names",
    "describe_choice",
    "explain",
    "get",
    "label",
    "layer_named",
    "reasons_not_supported",
    "record",
    "select",
    "use_backend",
]
