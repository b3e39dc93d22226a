"""The published configurations in the libraries they come from; where there is none, as upstream writes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from baselines import HostBlock
from subject import Unavailable
from torch import nn

import mvit_kernels
from mvit_kernels import models
from mvit_kernels.cli.bench import sharing_copy
from mvit_kernels.cli.workload import TORCHVISION, build
from mvit_kernels.patch.adapter import find_adapter
from mvit_kernels.problem import Grid

TORCHVISION_NAMES = {"mvit_v1_b_16x4": "mvit_v1_b", "mvit_v2_s_16x4": "mvit_v2_s"}
TIMM_NAMES = {
    "mvit_v2_t": "mvitv2_tiny",
    "mvit_v2_s": "mvitv2_small",
    "mvit_v2_b": "mvitv2_base",
    "mvit_v2_l": "mvitv2_large",
    "mvit_v2_s_cls": "mvitv2_small_cls",
    "mvit_v2_b_cls": "mvitv2_base_cls",
    "mvit_v2_l_cls": "mvitv2_large_cls",
    "mvit_v2_h_cls": "mvitv2_huge_cls",
}


@dataclass(frozen=True)
class Host:
    """A model in eval mode, without memory for its weights until they are asked for.

    Attributes:
        library: whose code it is.
        model: eager.
        blocks: its transformer blocks; each has its attention at `.attn`.
        grid: a token grid as its blocks take it.
        own: the same parameters in this package's modules, where the library's are not what is accelerated.
    """

    library: str
    model: nn.Module
    blocks: list[Any]
    grid: Callable[[Grid], Any]
    own: nn.Module | None = None

    def accelerated(self, module: nn.Module, scope: str) -> nn.Module:
        """A copy of one of its modules, over the same parameters, on mvit_kernels.

        Raises:
            Unavailable: blocks are asked for, and the library's are not covered.
            RuntimeError: a layer was left alone; says which and why.
        """
        if scope == "block" and self.own is None and find_adapter(type(self.blocks[0])) is None:
            raise Unavailable(f"{self.library}'s blocks are not covered, its attention layers are")
        own = getattr(module, "own", None) if self.own is not None else module
        fast = sharing_copy(self.own if own is None else own)  # the model itself has no `own`
        report = mvit_kernels.accelerate(fast, scope=scope)
        if report.left_alone:
            raise RuntimeError(f"left alone: {report.left_alone[0]}")
        return fast


def host(name: str, **sizes: int) -> Host:
    """The model `name`, of another size where one is given, on the device of the `with torch.device(...)` around."""
    if not sizes:
        if name in TORCHVISION_NAMES and find_spec("torchvision"):
            model: Any = build(TORCHVISION + TORCHVISION_NAMES[name]).model
            return Host("torchvision", model, list(model.blocks), lambda grid: grid)
        if name in TIMM_NAMES and find_spec("timm"):
            import timm

            model = timm.create_model(TIMM_NAMES[name]).eval()
            blocks = [block for stage in model.stages for block in stage.blocks]
            return Host("timm", model, blocks, lambda grid: grid[1:])
    own = models.create(name, **sizes).eval()
    model = sharing_copy(own)
    for i, block in enumerate(model.blocks):
        model.blocks[i] = HostBlock(block)
    return Host("as SlowFast writes it", model, list(model.blocks), lambda grid: grid, own)


def materialise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Memory and random values for the parameters of a module made on the meta device.

    Random everywhere, so that no part can be left out unnoticed.
    """
    generator = torch.Generator().manual_seed(seed)
    module.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            norm = "norm" in name and name.endswith("weight")
            scale = 0.1 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
            parameter.normal_(1.0 if norm else 0.0, scale, generator=generator)
    return module


def double(module: nn.Module) -> nn.Module:
    """A copy in float64, from the same rounded values."""
    with torch.inference_mode(False):
        return copy.deepcopy(module).double()
