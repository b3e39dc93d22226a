"""Autocast, gradient scaling and activation checkpointing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mvit_kernels import accelerate, backends, restore
from tests.numerics import assert_gradients_within_rule, assert_within_rule

from .hosts import HOSTS, assert_same, clips, gradients, torchvision_model

pytest.importorskip("torchvision")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("host", HOSTS)
def test_autocast_keeps_outputs_and_gradients_within_the_rule(host: str, dtype: torch.dtype, backend) -> None:
    model, x = HOSTS[host](), clips()
    own = host.startswith("own")

    def run(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
        with torch.autocast("cpu", dtype):
            return gradients(model, lambda x: model(x).float(), x, scale)

    scale = 64.0 if dtype == torch.float16 else 1.0  # as GradScaler does: or gradients are subnormal numbers
    with backends.use_backend("eager"):
        eager = run(model, x)
        exact = copy.deepcopy(model).double()
        oracle = gradients(exact, exact, x.double(), scale)
    accelerate(model)
    with backends.record() as log:
        kernel = run(model, x)
    assert log and all(decision.backend == backend for decision in log)
    assert own or all(decision.problem.dtype == dtype for decision in log)
    results = {name: (kernel[name].to(dtype), eager[name].to(dtype), oracle[name]) for name in oracle}
    assert_within_rule(*results.pop("output"))
    assert_gradients_within_rule(results.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_grad_scaler_trains_as_eager_does(dtype: torch.dtype, backend) -> None:
    """Ten steps of SGD under autocast with a scaled loss: the same losses within half precision's noise."""

    def train(model: nn.Module) -> list[float]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        losses = []
        for step in range(10):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype):
                loss = nn.functional.cross_entropy(model(clips(4)), torch.tensor([0, 1, 2, step % 2]))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(float(loss))
        return losses

    model = torchvision_model(2).train()
    twin = copy.deepcopy(model)
    accelerate(twin)
    expected, found = train(model), train(twin)
    assert expected[-1] < expected[0] - 0.1, "the model must learn for the comparison to mean something"
    assert found == pytest.approx(expected, rel=0.03, abs=0.02)


def test_an_overflow_is_found_and_the_step_skipped(backend) -> None:
    model = torchvision_model(2).train()
    accelerate(model)
    before = copy.deepcopy(model.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = clips()
    x[0, 0, 0, 0, 0] = torch.inf
    scaler.scale(model(x).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Checkpointed(nn.Module):
    """A block whose activations are recomputed in backward."""

    def __init__(self, block: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.block, self.reentrant = block, reentrant

    def forward(self, x: Tensor, thw: tuple[int, int, int]) -> tuple[Tensor, tuple[int, int, int]]:
        return checkpoint(self.block, x, thw, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("host", HOSTS)
def test_checkpointed_blocks_have_the_same_gradients(host: str, reentrant: bool, backend) -> None:
    model, x = HOSTS[host](), clips()
    accelerate(model)
    expected = gradients(model, model, x)
    blocks = list(model.blocks)
    for i, block in enumerate(blocks):
        model.blocks[i] = Checkpointed(block, reentrant)
    with backends.record() as log:
        found = gradients(model, model, x)
    assert sum(decision.problem.op == "pooling_attention" for decision in log) == 4  # each block runs twice
    found = {name.replace(".block.", "."): value for name, value in found.items()}
    assert_same(found, expected, of_scale=0.0)
    restore(model)
