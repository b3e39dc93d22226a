"""PyTorchVideo's checkpoints (pytorchvideo/models/vision_transformers.py, layers/attention.py)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .library import ATTENTION, NORMS_AND_LINEARS, POSITION, Keys, Library, same

TWIN = re.compile(r"(?P<attn>blocks\.\d+\.attn\.)_attention_pool_(?P<branch>[qkv])\.(?P<part>pool|norm)\.(?P<rest>\w+)")
POOLING = re.compile(r"(?P<attn>blocks\.\d+\.attn\.)(?P<part>pool|norm)_(?P<branch>[qkv])\.(?P<rest>\w+)")


class Twins(Keys):
    """Newer versions register the pooling's tensors twice: `pool_q.weight` is also `_attention_pool_q.pool.weight`.

    Their loader makes the second names of the first, so those are written only where `like=` has them.
    """

    def __init__(self, twins: bool = False) -> None:
        self.twins = twins

    @classmethod
    def of_checkpoint(cls, state_dict: Mapping[str, Tensor]) -> Twins:
        return cls(any(TWIN.fullmatch(key) for key in state_dict))

    def plain(self, key: str) -> str | None:
        twin = TWIN.fullmatch(key)
        return f"{twin['attn']}{twin['part']}_{twin['branch']}.{twin['rest']}" if twin else key

    def written(self, plain: str) -> tuple[str, ...]:
        pooling = POOLING.fullmatch(plain)
        if not (self.twins and pooling):
            return (plain,)
        return plain, f"{pooling['attn']}_attention_pool_{pooling['branch']}.{pooling['part']}.{pooling['rest']}"


PYTORCHVIDEO = Library(
    "pytorchvideo",
    (
        ("patch_embed.patch_model.{parameter}", "patch_embed.proj.{parameter}"),
        ("norm_patch_embed.{parameter}", "norm_stem.{parameter}"),
        ("norm_embed.{parameter}", "norm.{parameter}"),
        ("head.proj.{parameter}", "head.projection.{parameter}"),
        *((f"cls_positional_encoding.{name}", name) for name in POSITION),
        *same(*(f"{{block}}{name}.{{parameter}}" for name in NORMS_AND_LINEARS), *ATTENTION),
    ),
    keys=Twins,
    qkv="separate",
)
