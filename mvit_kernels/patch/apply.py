"""accelerate, restore, accelerated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..description import MHPA
from ..modules import MultiHeadPoolingAttention
from . import detectron2, hiera, memvit, mvit, openmmlab, own, pytorchvideo, sam, slowfast, timm, torchvision  # noqa: F401
from .adapter import SCOPES, SIMILAR_NAMES, NotCovered, describe, find_adapter, full_name
from .proof import prove
from .report import LeftAlone, Report, describe_replaced
from .swap import host_class, is_accelerated, swap_in, swap_out


def accelerate(model: nn.Module, scope: str = "attention") -> Report:
    """Run the MHPA layers of `model`, or its whole transformer blocks, on mvit_kernels, in place.

    Parameters, buffers, sub-modules, hooks, state_dict, train and eval mode, deepcopy and pickle behave as before,
    outputs and gradients agree within the numerics rule (docs/numerics.md). Calling it twice is harmless. A layer that
    is not covered, a subclass with a forward of its own for one, is left alone and reported with the reason. So is a
    layer whose own forward gives other results than the known layer of its library (:mod:`.proof`).

    Args:
        model: any module; layers of known libraries are found wherever they are inside it, `model` itself included.
        scope: "attention", or "block" for the attention layers and the blocks around them: norms, skip path, MLP and
            both residuals. Parts of a block that have hooks, or dropout that is active, run as the host's modules.
    Returns:
        What was replaced, what was not, and why; print it.
    Raises:
        TypeError: `model` is no torch.nn.Module.
        ValueError: an unknown scope.
    """
    report, covered = _survey(model, scope)
    for module in covered:
        swap_in(module)
    return report


def restore(model: nn.Module) -> nn.Module:
    """Give every layer of `model` its own forward back; returns `model`."""
    _check(model, "restore")
    for module in model.modules():
        if is_accelerated(module):
            swap_out(module)
    return model


@contextmanager
def accelerated(model: nn.Module, scope: str = "attention") -> Iterator[Report]:
    """:func:`accelerate` inside the `with`; on leaving it, the layers that this call replaced are restored."""
    report, covered = _survey(model, scope)
    for module in covered:
        swap_in(module)
    try:
        yield report
    finally:
        for module in covered:
            swap_out(module)


def survey(model: nn.Module) -> Report:
    """The report that :func:`accelerate` would give, in the scope it was called with before, with nothing changed."""
    _check(model, "survey")
    return _survey(model, "block" if any(is_accelerated_block(m) for m in model.modules()) else "attention")[0]


def is_accelerated_block(module: nn.Module) -> bool:
    if not is_accelerated(module):
        return False
    found = find_adapter(host_class(module))
    return found is not None and found[0].scope == "block"


def _survey(model: nn.Module, scope: str) -> tuple[Report, list[nn.Module]]:
    _check(model, "accelerate")
    if scope not in SCOPES:
        raise ValueError(f"accelerate: scope is {scope!r}, one of {', '.join(map(repr, SCOPES))} is right")
    report, covered = Report(type(model).__name__), []
    for name, module in model.named_modules():
        name = name or "(the model itself)"
        if isinstance(module, MultiHeadPoolingAttention):
            report.already.append(describe_replaced(name, module.describe()))
            continue
        found = find_adapter(host_class(module))
        if found is None:
            if type(module).__name__ in SIMILAR_NAMES:
                report.left_alone.append(LeftAlone(name, f"no adapter for {full_name(type(module))}"))
            continue
        adapter, host = found
        if adapter.scope == "block" and scope != "block":
            continue
        try:
            if is_accelerated(module):
                report.already.append(describe_replaced(name, adapter.describe(module)))
            else:
                layer = describe(module, adapter, host)
                if isinstance(layer, MHPA):
                    prove(module, layer, adapter, host)
                report.replaced.append(describe_replaced(name, layer))
                covered.append(module)
        except NotCovered as reason:
            report.left_alone.append(LeftAlone(name, str(reason), adapter.scope))
    return report, covered


def _check(model: nn.Module, function: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model is a {type(model).__name__}, a torch.nn.Module is right")
