"""Models by name."""

from __future__ import annotations

from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from .config import MViTConfig
from .mvit import MViT
from .published import PUBLISHED


def list_models() -> list[str]:
    """Names that :func:`create` and :func:`layer_shapes` take."""
    return sorted(PUBLISHED)


def model_config(name: str, **overrides: Any) -> MViTConfig:
    """The published configuration `name`, with fields of :class:`MViTConfig` replaced by `overrides`.

    Raises:
        ValueError: no such model; names the nearest ones.
        TypeError: an override that is not a field.
    """
    if name not in PUBLISHED:
        near = get_close_matches(name, PUBLISHED, n=5, cutoff=0.4) or list_models()
        raise ValueError(f"models: no model {name!r}, one of {', '.join(near)} is near")
    known = {field.name for field in fields(MViTConfig)}
    for override in overrides:
        if override not in known:
            near = get_close_matches(override, known, n=3, cutoff=0.4) or sorted(known)
            raise TypeError(f"models: no option {override!r}, one of {', '.join(near)} is near")
    return replace(PUBLISHED[name], **overrides)


def create(name: str, **overrides: Any) -> MViT:
    """The model `name` with SlowFast's random initialisation.

        create("mvit_v2_s_16x4", num_classes=174)

    Build it under `torch.device("meta")` to look at it without memory for weights.

    Raises:
        ValueError: no such model; names the nearest ones.
        TypeError: an override that is not a field of :class:`MViTConfig`.
    """
    return MViT(model_config(name, **overrides))
