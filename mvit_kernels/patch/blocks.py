"""What the adapters of all libraries' transformer blocks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .. import block
from ..description import MHPA, Attend, Block
from ..hooks import has_hooks
from ..modules import MultiHeadPoolingAttention
from .adapter import Layout, NotCovered, find_adapter
from .swap import host_class, is_accelerated


def attention(module: nn.Module) -> MHPA | Attend:
    """The description of a block's attention module, or the module itself where a call of it does more or other."""
    if has_hooks(module) or "forward" in vars(module):
        return module
    if type(module) is MultiHeadPoolingAttention:
        return module.describe()
    found = find_adapter(host_class(module))
    if found is None or not (is_accelerated(module) or type(module).forward is found[1].forward):
        return module
    try:
        layer = found[0].describe(module)
    except NotCovered:
        return module
    assert isinstance(layer, MHPA)
    return layer


def drop_path(module: nn.Module, active: bool) -> Callable[[Tensor], Tensor] | None:
    """The host's own stochastic depth, where it does something in this call: so it draws the host's random numbers."""
    return module if active or has_hooks(module) else None


def run_with_tuple_grid(
    module: nn.Module, layer: Block, x: Tensor, thw: Sequence[int]
) -> tuple[Tensor, tuple[int, ...]]:
    """forward(x, thw) -> (x, grid as a tuple)."""
    out, grid = block.forward(layer, x, thw)
    return out, tuple(grid)


LAYOUT = Layout(("x", "thw"), run_with_tuple_grid)
