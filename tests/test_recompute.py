"""Projections that are computed again in the backward: the same gradients, less memory, and no stale value."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mvit_kernels import backends, measure, recompute, use_backend
from mvit_kernels.modules import MultiHeadPoolingAttention

GRID = (2, 8, 8)
MVIT_V2 = {"rel_pos_spatial": True, "rel_pos_temporal": True, "residual_pooling": True}
LAYERS: dict[str, Callable[[], MultiHeadPoolingAttention]] = {
    "touched k and v": lambda: layer(stride_kv=(1, 8, 8)),
    "touched k and v, pooled q": lambda: layer(stride_q=(1, 2, 2), kernel_q=(3, 3, 3), stride_kv=(1, 4, 4)),
    "one projection": lambda: layer(kernel_q=(3, 3, 3), stride_kv=(1, 2, 2)),
}


def layer(**options: object) -> MultiHeadPoolingAttention:
    torch.manual_seed(0)
    made = MultiHeadPoolingAttention(24, 24, GRID, 2, qkv_bias=True, kernel_kv=(3, 3, 3), **MVIT_V2, **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def tokens(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 129, 24, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def gradients(module: nn.Module, x: Tensor, call: Callable[..., Tensor] | None = None) -> list[Tensor]:
    out = module(x, GRID)[0] if call is None else call(x)
    weight = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    return list(torch.autograd.grad((out.float() * weight).sum(), [x, *module.parameters()]))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is computed again, in order."""
    log: list[str] = []
    get = recompute._View.get

    def logged(view: recompute._View) -> Tensor:
        result = get(view)
        log.append("x".join(map(str, result.shape)))
        return result

    monkeypatch.setattr(recompute._View, "get", logged)
    return log


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_gradients_are_those_of_a_layer_that_keeps_everything(
    name: str, autocast: torch.dtype | None, made: list[str], monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    module, x = LAYERS[name](), tokens()
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        ours = gradients(module, x)
        assert made
        monkeypatch.setattr(recompute, "WIDEST", 0)
        del made[:]
        kept = gradients(module, x)
        assert not made
    for a, b in zip(ours, kept, strict=True):
        assert torch.equal(a, b)  # the same kernel on the same numbers


def test_the_backward_does_not_depend_on_autocast_or_backend_around_it(backend: str) -> None:
    module, x = LAYERS["touched k and v"](), tokens()
    expected = gradients(module, x)
    out = module(x, GRID)[0]
    loss = (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum()
    with use_backend("eager"), torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(loss, [x, *module.parameters()])
    for a, b in zip(found[:1], expected[:1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with use_backend("eager"):
        out = module(x, GRID)[0]
    with backends.record() as log:
        torch.autograd.grad(out.sum(), x)
    assert not log, "what was computed again went to another backend"


def test_gradients_of_gradients() -> None:
    module, x = LAYERS["one projection"]().double(), tokens(torch.float64)

    def second(widest: int) -> tuple[Tensor, ...]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recompute, "WIDEST", widest)
            out = module(x, GRID)[0]
            (first,) = torch.autograd.grad(out.sin().sum(), x, create_graph=True)
            return torch.autograd.grad(first.square().sum(), [x, *module.parameters()])

    for a, b in zip(second(128), second(0), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12 * float(b.abs().max()))


@pytest.mark.parametrize("what", ["input", "weight", "k and v"])
def test_a_value_that_was_changed_since_is_an_error(what: str) -> None:
    module = LAYERS["touched k and v, pooled q"]()
    x = tokens().detach() * 1
    out = module(x, GRID)[0]
    with torch.no_grad():
        if what == "input":
            x.add_(1)
        elif what == "weight":
            module.qkv.weight.add_(1)
        else:
            module.pool_k.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_less_is_kept() -> None:
    """The first layer of MViTv2-S, at a quarter of its tokens."""
    pools = {"kernel_q": (3, 3, 3), "kernel_kv": (3, 3, 3), "stride_kv": (1, 8, 8)}
    module = MultiHeadPoolingAttention(96, 96, (8, 28, 28), 1, **pools, **MVIT_V2)
    x = torch.randn(1, 6273, 96, requires_grad=True)

    def kept() -> int:
        module(x, (8, 28, 28))
        return measure.kept_for_backward(lambda: module(x, (8, 28, 28)))

    few = kept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recompute, "WIDEST", 0)
        many = kept()
    # q before its pooling, 6273 rows; of k and v 801 rows, what they were made from and what was made.
    assert many - few >= 4 * 96 * (6273 + 801 * 3)


@pytest.mark.parametrize("how", ["checkpoint", "save on cpu", "no grad", "wide", "inference"])
def test_where_everything_is_kept_or_nothing_need_be(how: str, made: list[str]) -> None:
    module, x = LAYERS["touched k and v"](), tokens()
    expected = gradients(module, x)
    del made[:]
    if how == "checkpoint":
        found = gradients(module, x, lambda x: checkpoint(lambda x: module(x, GRID)[0], x, use_reentrant=False))
    elif how == "save on cpu":
        with torch.autograd.graph.save_on_cpu():
            out = module(x, GRID)[0]
        found = gradients(module, x, lambda _: out)
    elif how == "wide":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recompute, "WIDEST", 8)
            found = gradients(module, x)
    else:
        with torch.no_grad() if how == "no grad" else torch.inference_mode():
            module(x, GRID)
        found = expected
    assert not made
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_a_copy_of_a_layer_whose_graph_is_alive() -> None:
    module, x = LAYERS["touched k and v"](), tokens()
    out = module(x, GRID)[0]
    twin = copy.deepcopy(module)
    out.sum().backward()
    twin(x, GRID)[0].sum().backward()
    for a, b in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
