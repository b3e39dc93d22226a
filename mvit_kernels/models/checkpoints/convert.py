"""Translate an MViT's state dict between libraries, through SlowFast's names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

from .backbones import DETECTRON2, MMACTION2, MMPRETRAIN
from .library import Keys, Library, expected
from .pytorchvideo import PYTORCHVIDEO
from .shapes import CONV, ShapeError, fitted, fused, separate, with_conv_axes
from .slowfast import MVIT, REFERENCE, SLOWFAST
from .timm import TIMM
from .torchvision import TORCHVISION

LIBRARIES = {
    library.name: library
    for library in (
        REFERENCE,
        SLOWFAST,
        MVIT,
        TORCHVISION,
        PYTORCHVIDEO,
        TIMM,
        MMACTION2,
        MMPRETRAIN,
        DETECTRON2,
    )
}
T = TypeVar("T")
Like = Mapping[str, Tensor] | nn.Module
PROJECTION = re.compile(r"(blocks\.\d+\.attn\.)(qkv|q|k|v)\.(weight|bias)")


@dataclass
class Conversion:
    """What :func:`translate_state_dict` made and what it could not.

    Attributes:
        state_dict: the target's keys and tensors, in the source's order.
        unknown: source keys that the source's models don't have.
        homeless: source keys for which the target's models (or `like`) have none.
        missing_source: keys that a model with these others has too.
        missing_target: keys that the target's models (or `like`) have and this state dict cannot fill.
        misfits: source keys with what is wrong with their tensors.
    """

    from_: str
    to: str
    state_dict: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    homeless: list[str] = field(default_factory=list)
    missing_source: list[str] = field(default_factory=list)
    missing_target: list[str] = field(default_factory=list)
    misfits: dict[str, str] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """One phrase per kind of problem, with all keys; empty where nothing was lost."""
        kinds = (
            (f"unknown {self.from_} keys", self.unknown),
            (f"{self.from_} keys without a place in {self.to}", self.homeless),
            (f"missing {self.from_} keys", self.missing_source),
            (f"missing {self.to} keys", self.missing_target),
            (f"{self.from_} tensors that do not fit", [f"{key} {why}" for key, why in sorted(self.misfits.items())]),
        )
        return [f"{kind}: {', '.join(sorted(keys))}" for kind, keys in kinds if keys]


def convert_state_dict(
    state_dict: Mapping[str, Tensor], *, from_: str, to: str, like: Like | None = None
) -> dict[str, Tensor]:
    """An MViT's state dict with the keys and tensor shapes of another library.

    Renamed are all keys; changed in shape are pooling and patch convolutions between 2D and 3D (with a kernel of 1 in
    time), the projections of q, k and v between fused and separate, and the leading axes of size 1 of embeddings. Other
    tensors are passed on as they are, sharing memory.

    It translates weights, not the model: how many heads, which strides, what is done with the class token's row and
    which index formula relative position has (see docs/checkpoints.md) are the target model's.

    Args:
        from_, to: "slowfast", "mvit", "mvit_kernels", "torchvision", "pytorchvideo", "timm", "mmaction2", "mmpretrain"
            or "detectron2"; the same library twice with `like` resizes.
        like: the target model or its state dict. The result has exactly its keys and shapes: relative-position and
            position tables are resized (linearly, square grids only), optional forms (stages whose width stays, a
            backbone's prefix, fused or separate projections, 2D patches) are taken from it.
    Raises:
        ValueError: another library, or keys that are unknown, missing or without a place in the target, or tensors
            that do not fit: all of them listed.
        TypeError: a value of the state dict is no tensor.
    """
    conversion = translate_state_dict(state_dict, from_=from_, to=to, like=like)
    problems = conversion.problems()
    if problems:
        raise ValueError(f"convert_state_dict: {'; '.join(problems)}")
    return conversion.state_dict


def translate_state_dict(
    state_dict: Mapping[str, Tensor], *, from_: str, to: str, like: Like | None = None
) -> Conversion:
    """:func:`convert_state_dict` for a part of a model: what cannot be converted is left out and listed in the result.

    Raises:
        ValueError: another library.
        TypeError: a value of the state dict is no tensor.
    """
    for argument, name in (("from_", from_), ("to", to)):
        if name not in LIBRARIES:
            raise ValueError(f"convert_state_dict: {argument} is {name!r}, one of {', '.join(LIBRARIES)} is right")
    source, target = LIBRARIES[from_], LIBRARIES[to]
    wanted = None if like is None else _tensors("like", like.state_dict() if isinstance(like, nn.Module) else like)
    result = Conversion(from_, to)
    hub, origins, keys = _to_hub(_tensors("state_dict", state_dict), source, result)
    lost = {*expected(source, {*hub})} - {*hub}
    result.missing_source = [key for name in lost for key in _keys_of(source, keys, name)[:1]]
    _from_hub(hub, origins, target, wanted, lost, result)
    return result


def _to_hub(
    state_dict: Mapping[str, Tensor], source: Library, result: Conversion
) -> tuple[dict[str, Tensor], dict[str, str], Keys]:
    """Tensors by SlowFast's names and shapes, each name's source key, and how the source's keys are written."""
    keys = source.keys.of_checkpoint(state_dict)
    hub: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    names = {key: _hub_name(source, keys, key) for key in state_dict}
    present = {*names.values()}
    for key, tensor in state_dict.items():
        name = names[key]
        projection = PROJECTION.fullmatch(name or "")
        beside_fused = projection and projection[2] != "qkv" and f"{projection[1]}qkv.{projection[3]}" in present
        if name is None or beside_fused:
            result.unknown.append(key)
            continue
        if name in hub:
            if hub[name].shape != tensor.shape or not hub[name].equal(tensor):
                result.misfits[key] = f"differs from {origins[name]}, which is the same tensor in the model"
            continue
        hub[name], origins[name] = tensor, key
    for name, tensor in hub.items():
        with_axes = tensor
        for _ in range(source.leading.get(name, 0)):
            with_axes = with_axes.unsqueeze(0)
        if CONV.fullmatch(name) and not name.startswith("patch_embed"):
            with_axes = _tried(result, (origins[name],), partial(with_conv_axes, axes=3), with_axes)
        hub[name] = with_axes
    return hub, origins, keys


def _from_hub(
    hub: Mapping[str, Tensor],
    origins: Mapping[str, str],
    target: Library,
    wanted: Mapping[str, Tensor] | None,
    lost: set[str],
    result: Conversion,
) -> None:
    """Fill the result with the target's keys and tensors; `lost` is listed as missing already."""
    keys = target.keys.of_hub(hub) if wanted is None else target.keys.of_checkpoint(wanted)
    projected = _projections(hub, origins, target, keys, wanted, result)
    patch = hub.get("patch_embed.proj.weight")
    one_frame = patch is not None and (patch.dim() == 4 or patch.shape[2] == 1)
    for name, (tensor, sources) in projected.items():
        written = _keys_of(target, keys, name)
        if wanted is not None:
            written = tuple(key for key in written if key in wanted)
        if not written:
            result.homeless.extend(sources)
        for key in written:
            shape = partial(_shaped, name=name, target=target, usual_axes=wanted is None)
            changed = _tried(result, sources, shape, tensor)
            if wanted is not None:
                fit = partial(fitted, name, shape=wanted[key].shape, one_frame=one_frame)
                changed = _tried(result, sources, fit, changed)
            if not result.misfits.keys() & {*sources}:
                result.state_dict[key] = changed
    result.homeless = sorted({*result.homeless})
    # What the source lacks is listed under the source's name already.
    listed = {*projected, *lost} | {name for name in hub if origins[name] in result.misfits}
    listed |= {part for name in listed for part in _parts(name)}
    if wanted is not None:
        absent = [key for key in wanted if key not in result.state_dict]
        result.missing_target = [key for key in absent if _hub_name(target, keys, key) not in listed]
    else:
        absent = [
            key for name in {*expected(target, {*projected})} - listed for key in _keys_of(target, keys, name)[:1]
        ]
        result.missing_target = absent


def _parts(name: str) -> list[str]:
    """The fused and separate names of a projection of q, k or v."""
    match = PROJECTION.fullmatch(name)
    return [f"{match[1]}{x}.{match[3]}" for x in ("qkv", *"qkv")] if match else []


def _projections(
    hub: Mapping[str, Tensor],
    origins: Mapping[str, str],
    target: Library,
    keys: Keys,
    wanted: Mapping[str, Tensor] | None,
    result: Conversion,
) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
    """The hub's tensors with their source keys; projections of q, k and v fused or separate as the target has them."""
    projected: dict[str, tuple[Tensor, tuple[str, ...]]] = {}
    for name, tensor in hub.items():
        match = PROJECTION.fullmatch(name)
        block, which, parameter = match.groups() if match else ("", "", "")
        parts = [f"{block}{x}.{parameter}" for x in "qkv"]
        whole = f"{block}qkv.{parameter}"
        form = target.qkv if wanted is None else _form(target, keys, wanted, whole, parts)
        if which == "qkv" and form == "separate":
            divided = _tried(result, (origins[name],), separate, tensor)
            if origins[name] not in result.misfits:
                projected.update((part, (x, (origins[name],))) for part, x in zip(parts, divided, strict=True))
        elif which == "q" and form == "fused" and all(part in hub for part in parts):
            sources = tuple(origins[part] for part in parts)
            whole_tensor = _tried(result, sources, partial(fused, others=[hub[part] for part in parts[1:]]), tensor)
            if not result.misfits.keys() & {*sources}:
                projected[whole] = whole_tensor, sources
        elif which in ("k", "v") and form == "fused" and all(part in hub for part in parts):
            continue
        else:
            projected[name] = tensor, (origins[name],)
    return projected


def _form(target: Library, keys: Keys, wanted: Mapping[str, Tensor], whole: str, parts: list[str]) -> str | None:
    """Which of the two forms the target's own keys have."""
    if any(key in wanted for key in _keys_of(target, keys, whole)):
        return "fused"
    if any(key in wanted for part in parts for key in _keys_of(target, keys, part)):
        return "separate"
    return target.qkv


def _shaped(tensor: Tensor, *, name: str, target: Library, usual_axes: bool) -> Tensor:
    """The hub's tensor as the library has it, a convolution with the axes it usually has there if `usual_axes`."""
    for _ in range(target.leading.get(name, 0)):
        tensor = tensor.squeeze(0)
    axes = target.patch_axes if name.startswith("patch_embed") else target.pool_axes
    return with_conv_axes(tensor, axes) if usual_axes and axes and CONV.fullmatch(name) else tensor


def _tried(result: Conversion, sources: tuple[str, ...], change: Callable[[Tensor], T], tensor: Tensor) -> T | Tensor:
    """The changed tensor; the tensor as it is, listed as a misfit, where the change is impossible."""
    try:
        return change(tensor)
    except ShapeError as error:
        for key in sources:
            result.misfits.setdefault(key, str(error))
        return tensor


def _hub_name(library: Library, keys: Keys, key: str) -> str | None:
    """SlowFast's name of the library's key, None where it has none."""
    plain = keys.plain(key)
    return None if plain is None else library.hub_name(plain)


def _keys_of(library: Library, keys: Keys, hub_name: str) -> tuple[str, ...]:
    """The library's keys of SlowFast's name, none where it has none."""
    plain = library.plain_name(hub_name)
    return () if plain is None else keys.written(plain)


def _tensors(argument: str, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    for key, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"convert_state_dict: {argument}[{key!r}] is a {type(value).__name__}, a tensor is right; "
                "a checkpoint file's weights are often below 'model_state', 'state_dict' or 'model'"
            )
    return state_dict
