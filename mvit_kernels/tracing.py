"""What torch.compile is told about functions of this package."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def constant_in_graphs(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """torch.compile calls `function` once, while tracing, and takes its result for a constant.

    As :func:`torch.compiler.assume_constant_result`, which does no more than this, but imports torch._dynamo for it:
    half the time that `import mvit_kernels` would take.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
