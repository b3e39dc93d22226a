"""Checkpoints with SlowFast's names: its own, the image repository's (mvit) and the reference models'.

SlowFast is the hub: names of every library are translated to its names (slowfast/models/video_model_builder.py,
attention.py) and from them. `norm_stem` and the layer scales are options of its models that the reference has not.
"""

from __future__ import annotations

from .library import BLOCK, HEAD, NORM, PATCH, POSITION, Library, same

REFERENCE = Library("mvit_kernels", same(PATCH, NORM, HEAD, *POSITION, *BLOCK))
SLOWFAST = Library("slowfast", (*REFERENCE.table, *same("norm_stem.{parameter}", "{block}gamma_1", "{block}gamma_2")))
# mvit/models/mvit_model.py: 2D convolutions, one position table, relative position in space.
MVIT = Library(
    "mvit",
    same(
        PATCH,
        NORM,
        HEAD,
        "cls_token",
        "pos_embed",
        *(name for name in BLOCK if not name.endswith("rel_pos_t")),
    ),
    pool_axes=2,
    patch_axes=2,
)
