"""Whether a call of a module would do more than its forward."""

from __future__ import annotations

from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, hooks, None) for hooks in HOOKS)


def inactive_dropout(module: nn.Module) -> bool:
    """`module` is a Dropout that changes nothing now, without hooks."""
    return type(module) is nn.Dropout and not has_hooks(module) and (not module.training or module.p == 0)
