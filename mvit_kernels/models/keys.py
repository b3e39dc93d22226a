"""Checkpoint key maps between torchvision's MViT and ours (SlowFast's names)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

OURS, TORCHVISION = "mvit_kernels", "torchvision"

PARAMETER = r"(?P<parameter>weight|bias)"
BLOCK = r"(?P<block>blocks\.\d+\.)"

# (torchvision, ours) names; {block} and {parameter} stand for "blocks.3." and "weight" or "bias".
NAMES = (
    ("conv_proj.{parameter}", "patch_embed.proj.{parameter}"),
    ("norm.{parameter}", "norm.{parameter}"),
    ("head.1.{parameter}", "head.projection.{parameter}"),
    ("{block}norm1.{parameter}", "{block}norm1.{parameter}"),
    ("{block}norm2.{parameter}", "{block}norm2.{parameter}"),
    ("{block}mlp.0.{parameter}", "{block}mlp.fc1.{parameter}"),
    ("{block}mlp.3.{parameter}", "{block}mlp.fc2.{parameter}"),
    ("{block}project.{parameter}", "{block}proj.{parameter}"),
    ("{block}attn.qkv.{parameter}", "{block}attn.qkv.{parameter}"),
    ("{block}attn.project.0.{parameter}", "{block}attn.proj.{parameter}"),
    *((f"{{block}}attn.pool_{x}.pool.weight", f"{{block}}attn.pool_{x}.weight") for x in "qkv"),
    *((f"{{block}}attn.pool_{x}.norm_act.0.{{parameter}}", f"{{block}}attn.norm_{x}.{{parameter}}") for x in "qkv"),
    *((f"{{block}}attn.rel_pos_{x}", f"{{block}}attn.rel_pos_{x}") for x in "hwt"),
)
# (torchvision, ours, leading axes of size 1 that ours has more)
EMBEDDINGS = (
    ("pos_encoding.class_token", "cls_token", 2),
    ("pos_encoding.spatial_pos", "pos_embed_spatial", 1),
    ("pos_encoding.temporal_pos", "pos_embed_temporal", 1),
    ("pos_encoding.class_pos", "pos_embed_class", 2),
)


def convert_state_dict(state_dict: Mapping[str, Tensor], *, from_: str, to: str) -> dict[str, Tensor]:
    """Rename the keys of an MViT classifier's state dict.

    Tensors are passed on as they are, apart from the leading axes of size 1 of the class token and position embeddings.
    SlowFast's checkpoints need no conversion.

    Args:
        from_, to: "torchvision" and "mvit_kernels", or the other way round.
    Raises:
        ValueError: another library, or keys that are unknown or missing, all of them listed.
    """
    if {from_, to} != {OURS, TORCHVISION}:
        raise ValueError(
            f"convert_state_dict: from_ {from_!r}, to {to!r}: {TORCHVISION!r} and {OURS!r}, in either order, are right"
        )
    to_ours = to == OURS
    renamed = {key: _rename(key, to_ours) for key in state_dict}
    unknown = sorted(key for key, name in renamed.items() if name is None)
    if unknown:
        raise ValueError(f"convert_state_dict: unknown {from_} keys: {', '.join(unknown)}")
    our_names = {name for name in (renamed.values() if to_ours else renamed) if name is not None}
    missing = sorted(set(_expected(our_names)) - our_names)
    if missing:
        named = [_rename(name, to_ours=False) if to_ours else name for name in missing]
        raise ValueError(f"convert_state_dict: missing {from_} keys: {', '.join(map(str, named))}")

    leading = {ours if to_ours else theirs: axes for theirs, ours, axes in EMBEDDINGS}
    converted = {}
    for key, tensor in state_dict.items():
        name = str(renamed[key])
        for _ in range(leading.get(name, 0)):
            tensor = tensor.unsqueeze(0) if to_ours else tensor.squeeze(0)
        converted[name] = tensor
    return converted


def _rename(key: str, to_ours: bool) -> str | None:
    """The other library's name of `key`, None where it has none."""
    pairs = (*NAMES, *((theirs, ours) for theirs, ours, _ in EMBEDDINGS))
    for theirs, ours in pairs:
        source, target = (theirs, ours) if to_ours else (ours, theirs)
        pattern = re.escape(source).replace(r"\{block\}", BLOCK).replace(r"\{parameter\}", PARAMETER)
        match = re.fullmatch(pattern, key)
        if match:
            return target.format(**match.groupdict())
    return None


def _expected(present: set[str]) -> Iterator[str]:
    """Every name (ours) that a model which has `present` must have.

    What is optional is the class's choice as a whole: which parameters LayerNorms have, pooling per branch with k and v
    together, all position embeddings, all relative-position tables.
    """
    depth = 1 + max((int(name.split(".")[1]) for name in present if name.startswith("blocks.")), default=-1)
    blocks = [f"blocks.{i}." for i in range(max(depth, 1))]
    norms = {"norm.", *(f"{block}{norm}." for block in blocks for norm in ("norm1", "norm2"))}
    linears = {"patch_embed.proj.", "head.projection."}
    linears |= {f"{block}{linear}." for block in blocks for linear in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    linears |= {f"{block}proj." for block in blocks if any(name.startswith(f"{block}proj.") for name in present)}

    yield "cls_token"
    groups = [[ours for _, ours, _ in EMBEDDINGS[1:]], [f"{block}attn.rel_pos_{x}" for block in blocks for x in "hwt"]]
    for group in groups:
        if present & {*group}:
            yield from group
    for block in blocks:
        for branch in ("q", "kv"):
            prefixes = [(f"{block}attn.pool_{x}.", f"{block}attn.norm_{x}.") for x in branch]
            if any(name.startswith(pair) for pair in prefixes for name in present):
                yield from (f"{pool}weight" for pool, _ in prefixes)
                norms |= {norm for _, norm in prefixes}
    parameters = {name.rsplit(".", 1)[1] for name in present if any(name.startswith(norm) for norm in norms)}
    yield from (f"{norm}{parameter}" for norm in norms for parameter in parameters)
    yield from (f"{linear}{parameter}" for linear in linears for parameter in ("weight", "bias"))
