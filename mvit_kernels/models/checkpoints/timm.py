"""timm's checkpoints (timm/models/mvitv2.py): blocks numbered within their stage, two names of the shortcut."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping

from torch import Tensor

from .library import BLOCK, HEAD, NORM, PATCH, Keys, Library, blocks, grows_in_attention, same, stage_starts

SHORTCUT = re.compile(r"(blocks\.\d+\.)shortcut_proj_(?:attn|mlp)\.(weight|bias)")


class Stages(Keys):
    """Blocks as `stages.S.blocks.B`; `shortcut_proj_attn` or `_mlp` by where the width grows."""

    def __init__(self, firsts: list[int], shortcut: str) -> None:
        self.firsts = firsts  # the first block of every stage
        self.shortcut = shortcut

    @classmethod
    def of_checkpoint(cls, state_dict: Mapping[str, Tensor]) -> Stages:
        depths: dict[int, int] = {}
        for key in state_dict:
            match = re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", key)
            if match:
                stage, block = int(match[1]), int(match[2])
                depths[stage] = max(depths.get(stage, 0), block + 1)
        firsts = [0]
        for stage in range(max(depths, default=0)):
            firsts.append(firsts[-1] + depths.get(stage, 1))
        in_mlp = any(".shortcut_proj_mlp." in key for key in state_dict)
        return cls(firsts, "shortcut_proj_mlp" if in_mlp else "shortcut_proj_attn")

    @classmethod
    def of_hub(cls, hub: Mapping[str, Tensor]) -> Stages:
        grown = [block for block in blocks(hub) if f"blocks.{block}.proj.weight" in hub]
        in_mlp = any(not grows_in_attention(hub, block) for block in grown)
        return cls([0, *stage_starts(hub)], "shortcut_proj_mlp" if in_mlp else "shortcut_proj_attn")

    def plain(self, key: str) -> str | None:
        match = re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.(.*)", key)
        if match and not match[3].startswith("proj."):
            plain = f"blocks.{self.firsts[int(match[1])] + int(match[2])}.{match[3]}"
            return SHORTCUT.sub(r"\1proj.\2", plain)
        return None if match or key.startswith("blocks.") else key

    def written(self, plain: str) -> tuple[str, ...]:
        match = re.fullmatch(r"blocks\.(\d+)\.(.*)", plain)
        if not match:
            return (plain,)
        block = int(match[1])
        stage = bisect_right(self.firsts, block) - 1
        rest = re.sub(r"^proj\.", f"{self.shortcut}.", match[2])
        return (f"stages.{stage}.blocks.{block - self.firsts[stage]}.{rest}",)


TIMM = Library(
    "timm",
    (
        ("head.fc.{parameter}", HEAD),
        *same(PATCH, NORM, "cls_token", "pos_embed", *(name for name in BLOCK if not name.endswith("rel_pos_t"))),
    ),
    keys=Stages,
    pool_axes=2,
    patch_axes=2,
    qkv="fused",
)
