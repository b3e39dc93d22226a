"""The models that `bench` and `explain` can run, built by name, with what their input must look like."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import nn

from .. import models, video
from ..problem import Grid
from .options import UsageError

TORCHVISION = "torchvision:"


@dataclass(frozen=True)
class Workload:
    """A model in eval mode and its input.

    Attributes:
        name: as on the command line, with the library's prefix.
        own: built on mvit_kernels.modules, so that "eager" is a choice of backend and not other code.
        size: frames, height and width.
        transform: from decoded frames to the model's input.
        categories: class names, or None where the model comes without.
    """

    name: str
    model: nn.Module
    own: bool
    size: Grid
    transform: video.Transform
    categories: list[str] | None

    def input_shape(self, batch: int) -> tuple[int, ...]:
        return (batch, 3, *self.size)


def build(name: str, *, size: list[int] | None = None, seed: int = 0) -> Workload:
    """The model called `name` with random weights from `seed`, in float32 on the CPU; nothing is downloaded.

    Args:
        name: one of :func:`model_names`.
        size: frames, height and width in place of the model's own.
    Raises:
        UsageError: unknown model, missing library, a size that the model can't take.
    """
    if name not in model_names():
        near = get_close_matches(name, model_names(), n=4, cutoff=0.5)
        nearest = f"perhaps {' or '.join(near)}; " if near else ""
        raise UsageError(f"unknown model {name!r}: {nearest}`info` lists all{_hint()}")
    torch.manual_seed(seed)
    build_ = _build_torchvision if name.startswith(TORCHVISION) else _build_own
    return build_(name, None if size is None else (size[0], size[1], size[2]))


def model_names() -> list[str]:
    """torchvision's MViT models, with the prefix, where it is installed; then the package's own."""
    return torchvision_names() + models.list_models()


def torchvision_names() -> list[str]:
    """torchvision's MViT models, with the prefix; none where it is not installed."""
    if importlib.util.find_spec("torchvision") is None:
        return []
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models.video)
    return [TORCHVISION + name for name in names if name.startswith("mvit")]


def _hint() -> str:
    return "" if torchvision_names() else f"; {TORCHVISION}... needs torchvision (pip install torchvision)"


def _build_torchvision(name: str, size: Grid | None) -> Workload:
    import torchvision

    builder = name.removeprefix(TORCHVISION)
    weights = torchvision.models.get_model_weights(builder).DEFAULT
    t, h, w = size or (weights.meta["min_temporal_size"], *weights.meta["min_size"])
    if t % 2 or h % 4 or w % 4:  # its position tables are sized by floor division, its patches are not
        raise UsageError(f"--size {t} {h} {w}: {name} takes an even T, and H and W that are multiples of 4")
    model = _torchvision_of_size(builder, size) if size else torchvision.models.get_model(builder, weights=None)
    preset = weights.transforms(crop_size=(h, w), resize_size=(video.resize_size((h, w)),))
    return Workload(name, model.eval(), False, (t, h, w), preset, weights.meta["categories"])


def _torchvision_of_size(builder: str, size: Grid) -> nn.Module:
    """The builder's blocks on another grid: a builder fixes the size, and tells its configuration to `block` alone."""
    import torchvision

    settings: list[dict[str, Any]] = []

    def record(**setting: Any) -> nn.Module:
        settings.append(setting)
        return nn.Identity()

    torchvision.models.get_model(builder, weights=None, block=record)
    options = ("residual_pool", "residual_with_cls_embed", "rel_pos_embed", "proj_after_attn", "norm_layer")
    return torchvision.models.video.MViT(
        spatial_size=size[1:],
        temporal_size=size[0],
        block_setting=[setting["cnf"] for setting in settings],
        **{option: settings[0][option] for option in options},
    )


def _build_own(name: str, size: Grid | None) -> Workload:
    overrides = {} if size is None else {"num_frames": size[0], "crop_size": size[1:]}
    try:
        model = models.create(name, **overrides)
    except ValueError as error:  # the name is known, so it is the size
        raise UsageError(f"--size: {error}") from None
    clip = model.config.clip
    return Workload(name, model.eval(), True, clip, partial(video.preprocess, size=clip[1:]), None)
