"""Which backend each layer used, in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .. import backends
from ..backends import Decision

ATTENTION = ("pooling_attention", "pooled_query_attention")


def summarise(decisions: Iterable[Decision]) -> list[str]:
    """Lines such as "16 layers: cpu (avx512)", attention layers by backend; then the poolings beside them."""
    by_layer: dict[str | None, list[Decision]] = {}
    for decision in decisions:
        by_layer.setdefault(decision.layer, []).append(decision)
    groups: Counter[tuple[str, str]] = Counter()
    for group in by_layer.values():
        attends = any(decision.problem.op in ATTENTION for decision in group)
        groups["layer" if attends else "skip pooling", _used(group)] += 1
    return [f"{count} {what}{'s' if count > 1 else ''}: {used}" for (what, used), count in groups.items()]


def _used(decisions: list[Decision]) -> str:
    """The one backend of all ops, or each backend with its ops."""
    ops: dict[str, list[str]] = {}
    for decision in decisions:
        names = ops.setdefault(decision.backend, [])
        if decision.problem.op not in names:
            names.append(decision.problem.op)
    if len(ops) == 1:
        return backends.label(next(iter(ops)))
    return "; ".join(f"{backends.label(name)} for {', '.join(used)}" for name, used in ops.items())
