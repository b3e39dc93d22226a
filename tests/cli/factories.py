"""Models for `verify`, by package.module:factory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.ways.hosts import clips, own_model, torchvision_model


def small() -> nn.Module:
    return torchvision_model(2)


def dropping() -> tuple[nn.Module, Tensor]:
    return torchvision_model(2, attention_dropout=0.2, dropout=0.2, stochastic_depth_prob=0.3), clips(1)


def own() -> tuple[nn.Module, Tensor]:
    return own_model(), clips(2)


def without_layers() -> tuple[nn.Module, Tensor]:
    return nn.Linear(4, 4), torch.zeros(1, 4)


def failing() -> nn.Module:
    raise KeyError("weights")


def no_model() -> int:
    return 3


number = 3
