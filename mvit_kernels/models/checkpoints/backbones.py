"""Checkpoints of backbones: mmaction2's, mmpretrain's and detectron2's.

Sources: mmaction/models/backbones/mvit.py and heads/mvit_head.py, mmpretrain/models/backbones/mvit.py with its
LinearClsHead, detectron2/modeling/backbone/mvit.py. All have a norm per stage that is an output, the last being
SlowFast's, and a prefix within a whole model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .library import BLOCK, PATCH, STAGE_NORM, Keys, Library, same, stage_starts


class Backbone(Keys):
    """A prefix on the keys of the backbone, and norms numbered by stage."""

    prefix = "backbone."
    heads: tuple[str, ...] = ()
    norm = "norm{}"
    first_norm = 0

    def __init__(self, last_stage: int, prefixed: bool) -> None:
        self.last_stage = last_stage
        self.prefixed = prefixed

    @classmethod
    def of_checkpoint(cls, state_dict: Mapping[str, Tensor]) -> Backbone:
        prefixed = any(key.startswith(cls.prefix) for key in state_dict)
        start = len(cls.prefix) if prefixed else 0
        return cls(len(stage_starts({key[start:]: tensor for key, tensor in state_dict.items()})), prefixed)

    @classmethod
    def of_hub(cls, hub: Mapping[str, Tensor]) -> Backbone:
        return cls(len(stage_starts(hub)), prefixed=bool(cls.heads) and "head.projection.weight" in hub)

    def plain(self, key: str) -> str | None:
        if key.startswith(self.heads or ("\0",)):
            return key
        if key.startswith(self.prefix) != self.prefixed:
            return None
        key = key.removeprefix(self.prefix)
        match = re.fullmatch(self.norm.format(r"(\d+)") + r"\.(weight|bias)", key)
        if not match:
            return key
        stage = int(match[1]) - self.first_norm
        return f"norm.{match[2]}" if stage == self.last_stage else f"stage_norms.{stage}.{match[2]}"

    def written(self, plain: str) -> tuple[str, ...]:
        if plain.startswith(self.heads or ("\0",)):
            return (plain,)
        match = re.fullmatch(r"(?:norm|stage_norms\.(\d+))\.(weight|bias)", plain)
        if match:
            stage = self.last_stage if match[1] is None else int(match[1])
            plain = f"{self.norm.format(stage + self.first_norm)}.{match[2]}"
        return (f"{self.prefix}{plain}" if self.prefixed else plain,)


class MMAction2(Backbone):
    heads = ("cls_head.",)


class MMPretrain(Backbone):
    heads = ("head.",)


class Detectron2(Backbone):
    prefix = "backbone.bottom_up."
    norm = "scale{}_norm"
    first_norm = 2


EMBEDDINGS = same("cls_token", "pos_embed")
NORMS = same("norm.{parameter}", STAGE_NORM)
PROJECTION = (("patch_embed.projection.{parameter}", PATCH),)
IMAGE_BLOCK = same(*(name for name in BLOCK if not name.endswith("rel_pos_t")))

MMACTION2 = Library(
    "mmaction2",
    (
        *PROJECTION,
        ("cls_head.fc_cls.{parameter}", "head.projection.{parameter}"),
        *EMBEDDINGS,
        *NORMS,
        *same(*BLOCK),
    ),
    keys=MMAction2,
    patch_axes=3,
    qkv="fused",
    required=("cls_token",),
    rel_pos_t=True,
)
MMPRETRAIN = Library(
    "mmpretrain",
    (
        *PROJECTION,
        ("head.fc.{parameter}", "head.projection.{parameter}"),
        *same("pos_embed"),
        *NORMS,
        *IMAGE_BLOCK,
    ),
    keys=MMPretrain,
    pool_axes=2,
    patch_axes=2,
    qkv="fused",
)
DETECTRON2 = Library(
    "detectron2",
    (*same(PATCH), *same("pos_embed"), *NORMS, *IMAGE_BLOCK),
    keys=Detectron2,
    pool_axes=2,
    patch_axes=2,
    qkv="fused",
)
