"""mvit_kernels.modules.MultiScaleBlock. Its attention runs on mvit_kernels of itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import block
from ..description import Block
from ..hooks import has_hooks, inactive_dropout
from ..modules.mlp import Mlp
from . import blocks, parts
from .adapter import Layout, NotCovered, adapts


def _run(module: Any, layer: Block, x: Tensor, thw_shape: Sequence[int] | None = None) -> Any:
    out, grid = block.forward(layer, x, thw_shape)  # type: ignore[arg-type]
    return out if thw_shape is None else (out, list(grid))


@adapts(Layout(("x", "thw_shape"), _run), "mvit_kernels.modules.block.MultiScaleBlock", scope="block")
def describe_block(m: Any) -> Block:
    if m.gamma_1 is not None or m.gamma_2 is not None:
        raise NotCovered("layer scale (gamma_1, gamma_2) is not covered")
    changes_channels = m.dim != m.dim_out
    return Block(
        norm1=parts.layer_norm("norm1", m.norm1),
        attention=blocks.attention(m.attn),
        norm2=parts.layer_norm("norm2", m.norm2),
        mlp=_mlp(m.mlp),
        has_cls=m.has_cls_embed,
        pool_skip=None if m.pool_skip is None else parts.max_pool("pool_skip", m.pool_skip),
        project=parts.linear("proj", m.proj) if changes_channels else None,
        project_first=m.dim_mul_in_att,
        drop_path=blocks.drop_path(m.drop_path, m.drop_path.training and not isinstance(m.drop_path, nn.Identity)),
    )


def _mlp(module: Any) -> Any:
    if has_hooks(module):
        return module
    parts.plain("mlp", module, Mlp)
    if not (inactive_dropout(module.drop) or parts.is_plain(module.drop, nn.Identity)):
        return module
    return parts.gelu_mlp("mlp", module.fc1, module.act, module.fc2)
