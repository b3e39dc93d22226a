"""torchvision's checkpoints (torchvision/models/video/mvit.py)."""

from __future__ import annotations

from .library import REL_POS, Library, same

LEADING = {"cls_token": 2, "pos_embed_spatial": 1, "pos_embed_temporal": 1, "pos_embed_class": 2}

TORCHVISION = Library(
    "torchvision",
    (
        ("conv_proj.{parameter}", "patch_embed.proj.{parameter}"),
        ("head.1.{parameter}", "head.projection.{parameter}"),
        ("pos_encoding.class_token", "cls_token"),
        ("pos_encoding.spatial_pos", "pos_embed_spatial"),
        ("pos_encoding.temporal_pos", "pos_embed_temporal"),
        ("pos_encoding.class_pos", "pos_embed_class"),
        ("{block}mlp.0.{parameter}", "{block}mlp.fc1.{parameter}"),
        ("{block}mlp.3.{parameter}", "{block}mlp.fc2.{parameter}"),
        ("{block}project.{parameter}", "{block}proj.{parameter}"),
        ("{block}attn.project.0.{parameter}", "{block}attn.proj.{parameter}"),
        *((f"{{block}}attn.pool_{x}.pool.weight", f"{{block}}attn.pool_{x}.weight") for x in "qkv"),
        *((f"{{block}}attn.pool_{x}.norm_act.0.{{parameter}}", f"{{block}}attn.norm_{x}.{{parameter}}") for x in "qkv"),
        *same("norm.{parameter}", "{block}norm1.{parameter}", "{block}norm2.{parameter}"),
        *same("{block}attn.qkv.{parameter}", *REL_POS),
    ),
    patch_axes=3,
    qkv="fused",
    leading=LEADING,
    required=("cls_token", "head.projection.weight", "head.projection.bias"),
    rel_pos_t=True,
)
