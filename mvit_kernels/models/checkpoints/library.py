"""What a library's file says about its checkpoints: its names beside SlowFast's, and its tensor shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

Pairs = tuple[tuple[str, str], ...]
"""(theirs, SlowFast's) names; see `PATTERNS` for what stands in braces."""

PATTERNS = {
    "block": r"(?P<block>blocks\.\d+\.)",
    "parameter": r"(?P<parameter>weight|bias)",
    "stage": r"(?P<stage>\d+)",
}

NORMS_AND_LINEARS = ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "proj")
ATTENTION = (
    *(f"{{block}}attn.{linear}.{{parameter}}" for linear in ("qkv", "q", "k", "v", "proj")),
    *(f"{{block}}attn.pool_{x}.weight" for x in "qkv"),
    *(f"{{block}}attn.norm_{x}.{{parameter}}" for x in "qkv"),
)
REL_POS = tuple(f"{{block}}attn.rel_pos_{x}" for x in "hwt")
BLOCK = (*(f"{{block}}{name}.{{parameter}}" for name in NORMS_AND_LINEARS), *ATTENTION, *REL_POS)
PATCH, NORM, HEAD = "patch_embed.proj.{parameter}", "norm.{parameter}", "head.projection.{parameter}"
POSITION = ("cls_token", "pos_embed", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class")
# Not SlowFast's: the norms of the earlier stages of a backbone whose stages all are outputs.
STAGE_NORM = "stage_norms.{stage}.{parameter}"


def same(*names: str) -> Pairs:
    """Names that are SlowFast's."""
    return tuple((name, name) for name in names)


class Keys:
    """How a library's keys are written, where that depends on the model; here they are those of the table.

    A library whose keys depend on it overrides all four.
    """

    @classmethod
    def of_checkpoint(cls, state_dict: Mapping[str, Tensor]) -> Keys:
        """As in a state dict of the library."""
        return cls()

    @classmethod
    def of_hub(cls, hub: Mapping[str, Tensor]) -> Keys:
        """As the library would write a model whose state dict with SlowFast's names is `hub`."""
        return cls()

    def plain(self, key: str) -> str | None:
        """The name in the table of a key, None where no key is written like this."""
        return key

    def written(self, plain: str) -> tuple[str, ...]:
        """The keys of a name in the table, the main one first."""
        return (plain,)


@dataclass(frozen=True)
class Library:
    """A library's checkpoints.

    Attributes:
        table: its names beside SlowFast's.
        pool_axes, patch_axes: spatial and temporal axes of its pooling and patch convolutions; None: either.
        qkv: "fused" or "separate" projections of q, k and v; None: either.
        leading: axes of size 1 that SlowFast's tensor has in front of the library's, by SlowFast's name.
        required: SlowFast's names of what every model of the library has.
        rel_pos_t: relative position in space implies it in time.
    """

    name: str
    table: Pairs
    keys: type[Keys] = Keys
    pool_axes: int = 3
    patch_axes: int | None = None
    qkv: str | None = None
    leading: Mapping[str, int] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    rel_pos_t: bool = False

    def hub_name(self, plain: str) -> str | None:
        """SlowFast's name of a name in the table."""
        return _renamed(plain, self._to_hub)

    def plain_name(self, hub: str) -> str | None:
        """The name in the table of SlowFast's name."""
        return _renamed(hub, self._from_hub)

    @cached_property
    def _to_hub(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(theirs), hub) for theirs, hub in self.table]

    @cached_property
    def _from_hub(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(hub), theirs) for theirs, hub in self.table]


def stage_starts(hub: Mapping[str, Tensor]) -> list[int]:
    """The blocks after the first at which a stage starts, by the width: it grows in the attention of a stage's first
    block, or in the MLP of the last block before.
    """
    starts = []
    for block in blocks(hub):
        if f"blocks.{block}.proj.weight" in hub:
            starts.append(block if grows_in_attention(hub, block) else block + 1)
    return starts


def grows_in_attention(hub: Mapping[str, Tensor], block: int) -> bool:
    """The block's attention has another width than its input."""
    for projection, factor in (("qkv", 3), ("q", 1)):
        weight = hub.get(f"blocks.{block}.attn.{projection}.weight")
        if weight is not None:
            return weight.shape[0] != factor * weight.shape[1]
    return False


def blocks(names: Mapping[str, Tensor] | set[str]) -> list[int]:
    """The numbers of the blocks that names (SlowFast's) speak of."""
    return sorted({int(match[1]) for match in (re.match(r"blocks\.(\d+)\.", name) for name in names) if match})


def expected(library: Library, present: set[str]) -> Iterator[str]:
    """Every name (SlowFast's) that a model of `library` which has `present` must have.

    What is optional is the model's choice as a whole: the head, pooling per branch with k and v together, position
    embeddings and tables, which parameters LayerNorms have, biases of the projections of q, k and v.
    """
    # A hole in the numbers is a lost block.
    prefixes = [f"blocks.{i}." for i in range(max(blocks(present), default=0) + 1)]
    norms = {"norm.", *(f"{block}{norm}." for block in prefixes for norm in ("norm1", "norm2"))}
    linears = {"patch_embed.proj."}
    linears |= {f"{block}{linear}." for block in prefixes for linear in ("attn.proj", "mlp.fc1", "mlp.fc2")}
    linears |= {f"{block}proj." for block in prefixes if any(name.startswith(f"{block}proj.") for name in present)}
    if any(name.startswith("head.") for name in present):
        linears.add("head.projection.")

    yield from library.required
    if present & {"pos_embed_spatial", "pos_embed_temporal", "pos_embed_class"}:
        yield from ("pos_embed_spatial", "pos_embed_temporal")
        if "cls_token" in present:
            yield "pos_embed_class"
    for axes in ("hwt",) if library.rel_pos_t else ("hw", "t"):
        tables = [f"{block}attn.rel_pos_{x}" for block in prefixes for x in axes]
        if present & {*tables}:
            yield from tables
    for block in prefixes:
        separate = any(name.startswith(f"{block}attn.{x}.") for name in present for x in "qkv")
        projections = [f"{block}attn.{x}." for x in ("qkv" if separate else ("qkv",))]
        has_bias = any(re.fullmatch(r"blocks\.\d+\.attn\.(q|k|v|qkv)\.bias", name) for name in present)
        yield from (f"{projection}weight" for projection in projections)
        yield from (f"{projection}bias" for projection in projections if has_bias)
        for branch in ("q", "kv"):
            pairs = [(f"{block}attn.pool_{x}.", f"{block}attn.norm_{x}.") for x in branch]
            if any(name.startswith(pair) for pair in pairs for name in present):
                yield from (f"{pool}weight" for pool, _ in pairs)
                norms |= {norm for _, norm in pairs}
    parameters = {name.rsplit(".", 1)[1] for name in present if any(name.startswith(norm) for norm in norms)}
    yield from (f"{norm}{parameter}" for norm in norms for parameter in parameters)
    yield from (f"{linear}{parameter}" for linear in linears for parameter in ("weight", "bias"))


def _pattern(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for name, expression in PATTERNS.items():
        pattern = pattern.replace(rf"\{{{name}\}}", expression)
    return re.compile(pattern)


def _renamed(name: str, rows: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in rows:
        match = pattern.fullmatch(name)
        if match:
            return target.format(**match.groupdict())
    return None
