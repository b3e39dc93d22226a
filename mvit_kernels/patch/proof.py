"""The proof that a layer computes what its adapter says.

Libraries keep their layers under the same name and signature while the arithmetic changes, and forks do so without
telling. So before a layer is replaced, its own forward and its description run side by side on a few random tokens in
float64, with random parameters in a copy that shares none of the model's memory. They must agree to rounding, in
training and in evaluation mode; a layer that does not is left alone.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from .. import backends
from ..description import MHPA, HostPool, PoolNorm
from ..hooks import HOOKS
from .adapter import Adapter, NotCovered

TOLERANCE = 1e-9
"""Of the largest value; float64 rounding of both is some 1e-14."""

_verdicts: dict[Any, str | None] = {}
_lock = threading.Lock()


def prove(module: nn.Module, layer: MHPA, adapter: Adapter, host: type[nn.Module]) -> None:
    """Raises :class:`NotCovered` where the host's forward and the description give other numbers, or can't be compared.

    Layers that differ in parameters alone share one verdict.
    """
    key = (host.forward, type(module), _settings(module), _structure(layer))
    if key not in _verdicts:
        with _lock:
            _verdicts[key] = _compare(module, adapter, host)
    reason = _verdicts[key]
    if reason is not None:
        raise NotCovered(reason)


def _compare(module: nn.Module, adapter: Adapter, host: type[nn.Module]) -> str | None:
    """None, or why the layer can't be said to compute its description."""
    random = _Random()
    with (
        torch.no_grad(),
        torch.device("cpu"),
        torch.autocast("cpu", enabled=False),
        torch.random.fork_rng(devices=[]),
        backends.use_backend("eager"),
    ):
        try:
            twin = _twin(module, host, random)
            layer = adapter.describe(twin)
            assert adapter.layout.example is not None
            args = adapter.layout.example(twin, layer, random)
            for training in (True, False):
                twin.train(training)
                torch.manual_seed(0)
                expected = host.forward(twin, *copy.deepcopy(args))
                torch.manual_seed(0)
                found = adapter.layout.run(twin, adapter.describe(twin), *args)
                if not _agree(found, expected):
                    mode = "training" if training else "evaluation"
                    return f"its forward gives other results than the known layer of {adapter.host} in {mode} mode"
        except Exception as error:  # whatever a host's code may raise means that nothing is proven
            return f"its forward could not be compared with the known one: {type(error).__name__}: {error}"
    return None


class _Random:
    """Normal float64 numbers, the same ones in every process."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64, device="cpu")


def _twin(module: nn.Module, host: type[nn.Module], random: _Random) -> nn.Module:
    """A copy on the CPU in float64 with random parameters and without hooks; `module` may be on any device, or meta."""
    memo: dict[int, Any] = {}
    for name, parameter in module.named_parameters():
        values = random(*parameter.shape)
        if parameter.dim() > 1:
            values /= max(parameter[0].numel(), 1) ** 0.5
        else:
            values = 0.3 * values + (1.0 if name.endswith("weight") else 0.0)
        memo[id(parameter)] = nn.Parameter(values)
    for buffer in module.buffers():
        if buffer.is_floating_point():
            memo[id(buffer)] = torch.ones(buffer.shape, dtype=torch.float64)
    # First of the host's class, without hooks and private state: what FSDP gives a layer refuses to be copied.
    plain = host.__new__(host)
    for name, value in vars(module).items():
        if not name.startswith("__"):
            plain.__dict__[name] = OrderedDict() if "_hooks" in name else value
    twin = copy.deepcopy(plain, memo)
    for part in twin.modules():
        for hooks in HOOKS:
            getattr(part, hooks).clear()
    return twin


def _agree(found: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        if not isinstance(found, Tensor) or found.shape != expected.shape or found.dtype != expected.dtype:
            return False
        return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())
    if isinstance(expected, (tuple, list)):
        return type(found) is type(expected) and all(map(_agree, found, expected)) and len(found) == len(expected)
    return bool(found == expected)


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """The plain values a module and its sub-modules hold: what its forward can depend on besides tensors."""
    plain = (bool, int, float, str, type(None))
    return tuple(
        (name, type(part), key, value)
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if key != "training"
        and (isinstance(value, plain) or (isinstance(value, tuple) and all(isinstance(v, plain) for v in value)))
    )


def _structure(layer: MHPA) -> tuple[Any, ...]:
    """What of a description is not a tensor."""
    branches = tuple(
        branch if branch is None else (HostPool,) if isinstance(branch, HostPool) else _pool_structure(branch)
        for branch in layer.pools
    )
    rel_pos = layer.rel_pos and (
        tuple(table is not None for table in (layer.rel_pos.t, layer.rel_pos.h, layer.rel_pos.w)),
        layer.rel_pos.index,
        layer.rel_pos.resized,
    )
    return (
        *(layer.heads, layer.scale, layer.has_cls, type(layer.qkv), branches, rel_pos, layer.residual),
        *(layer.pool_first, layer.pool_heads, layer.windows),
    )


def _pool_structure(branch: PoolNorm) -> tuple[Any, ...]:
    return branch.pool, branch.norm_weight is None, branch.norm_bias is None, branch.norm_eps
