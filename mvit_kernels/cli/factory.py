"""A user's own model: `package.module:factory`."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import video
from . import workload
from .options import UsageError


@dataclass(frozen=True)
class Subject:
    """A model to verify and its random input; `transform` makes a clip's frames its input, None where nothing does."""

    name: str
    model: nn.Module
    x: Tensor
    transform: video.Transform | None


def load(name: str, *, size: list[int] | None, batch: int, seed: int) -> Subject:
    """The model called `name`, or what `package.module:factory` makes, with random weights and input from `seed`.

    The factory takes no argument and returns the model, or the model and an example of its input: a floating tensor
    with the batch first. The current folder is searched for the module too.

    Raises:
        UsageError: no such model, module or factory; the factory fails or returns something else; no input known.
    """
    torch.manual_seed(seed)
    if name in workload.model_names() or ":" not in name or name.startswith(workload.TORCHVISION):
        found = workload.build(name, size=size, seed=seed)
        return Subject(name, found.model, torch.randn(found.input_shape(batch)), found.transform)
    made = _call(name)
    model, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name}: returned a {type(model).__name__}, a torch.nn.Module is right")
    if size is not None:
        x = torch.randn(batch, 3, *size)
    elif isinstance(example, Tensor) and example.is_floating_point():
        x = torch.randn(batch, *example.shape[1:])
    elif example is None:
        raise UsageError(f"{name}: --size T H W is needed, or a factory that returns the model and an example input")
    else:
        raise UsageError(f"{name}: the example input is a {type(example).__name__}, a floating tensor is right")
    return Subject(name, model.eval(), x, _transform(x))


def _call(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory = importlib.import_module(module)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{name}: {error}; package.module:factory or a name that `info` lists is right") from None
    if not callable(factory):
        raise UsageError(f"{name}: is a {type(factory).__name__}, a function that returns the model is right")
    try:
        return factory()
    except Exception as error:  # the user's code: its type and words say what is wrong
        raise UsageError(f"{name}: the factory failed: {type(error).__name__}: {error}") from None


def _transform(x: Tensor) -> video.Transform | None:
    """Frames to an input like `x`: (B, 3, T, H, W), or (B, 3, H, W) of one frame."""
    if x.dim() not in (4, 5) or x.shape[1] != 3:
        return None
    height, width = x.shape[-2:]

    def transform(frames: Tensor) -> Tensor:
        clip = video.preprocess(frames, size=(height, width))
        return clip if x.dim() == 5 else clip[:, 0]

    return transform
