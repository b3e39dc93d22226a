"""Which implementation runs a problem, and why the others do not."""

from .base import Backend, UnsupportedError
from .registry import (
    Decision,
    Log,
    Remark,
    available,
    backend_names,
    describe_choice,
    explain,
    get,
    label,
    layer_named,
    peek,
    pools_queries,
    reasons_not_supported,
    record,
    remark,
    select,
    use_backend,
)

__all__ = [
    "Backend",
    "Decision",
    "Log",
    "Remark",
    "UnsupportedError",
    "available",
    "backend_names",
    "describe_choice",
    "explain",
    "get",
    "label",
    "layer_named",
    "peek",
    "pools_queries",
    "reasons_not_supported",
    "record",
    "remark",
    "select",
    "use_backend",
]
