"""Which backend each layer of a model uses, seen by running it once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import backends
from ..backends import Decision, Remark
from ..modules import MultiHeadPoolingAttention, MultiScaleBlock
from .apply import is_accelerated_block, survey
from .report import Report
from .swap import is_accelerated


@dataclass(frozen=True)
class Explanation:
    """Every op call of one forward, in order, remarks about its layers, and the report on them."""

    decisions: list[Decision]
    report: Report
    remarks: list[Remark]

    def __str__(self) -> str:
        lines, layer = [str(self.report)], None
        for decision in self.decisions:
            if decision.layer != layer:
                layer = decision.layer
                lines.append(f"{layer or '(outside a known layer)'}")
                texts = (remark.text for remark in self.remarks if remark.layer == layer)
                lines += [f"  {text}" for text in dict.fromkeys(texts)]
            line = f"  {decision.problem.op}  {backends.label(decision.backend)}  {decision.problem}"
            lines.append("; ".join([line, *decision.notes]))
        return "\n".join(lines)


def explain_model(model: nn.Module, *args: Any, **kwargs: Any) -> Explanation:
    """Run `model(*args, **kwargs)` once and tell, per layer and op, the problem, the backend and why not a faster one.

    With gradients, as outside `torch.no_grad()`, it tells of training.

    Args:
        model: an accelerated model, or one built on :mod:`mvit_kernels.modules`.
        args, kwargs: what the model's forward takes.
    """
    with layers_named(model), backends.record() as log:
        model(*args, **kwargs)
    return Explanation(log, survey(model), log.remarks)


@contextmanager
def layers_named(model: nn.Module) -> Iterator[None]:
    """Decisions recorded inside the `with` carry the name of the layer of `model` that made them."""
    with ExitStack() as stack:
        blocks: list[str] = []
        for name, module in model.named_modules():
            if any(name.startswith(block) for block in blocks):
                continue  # runs inside the block, as a part of it; a hook of ours would keep it out
            if is_accelerated_block(module):
                blocks.append(f"{name}." if name else "")
            if is_accelerated(module) or isinstance(module, (MultiHeadPoolingAttention, MultiScaleBlock)):
                enter, leave = _hooks(name)
                stack.callback(module.register_forward_pre_hook(enter).remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield


def _hooks(name: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """Forward hooks that hold the layer's name while it runs; nested layers come back to the outer name."""
    open_layers: list[ExitStack] = []

    def enter(*_: Any) -> None:
        open_layers.append(ExitStack())
        open_layers[-1].enter_context(backends.layer_named(name))

    def leave(*_: Any) -> None:
        open_layers.pop().close()

    return enter, leave
