"""torchvision's MViT (torchvision/models/video/mvit.py) as the reference model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from .checkpoints import convert_state_dict
from .config import BlockConfig, MViTConfig, Sizes
from .mvit import MViT

T = TypeVar("T")


def from_torchvision(model: Any) -> MViT:
    """The reference model with the configuration and a copy of the weights of a torchvision MViT.

    Reads the modules, so it takes any configuration the class can build with LayerNorm, and a classifier of another
    width. Same outputs, dtypes, devices and training mode.

    Args:
        model: `torchvision.models.video.MViT`.
    Raises:
        TypeError: another class, or a part of it was replaced by another class; names the part.
        ValueError: its blocks differ where MViT's are alike; names what differs.
    """
    from torchvision.models.video import mvit as tv

    _expect("model", model, tv.MViT)
    _expect("head", model.head, nn.Sequential)
    if len(model.head) != 2:
        raise TypeError(f"from_torchvision: head has {len(model.head)} modules, Dropout and Linear are right")
    head_dropout, classifier = model.head
    _expect("head.0", head_dropout, nn.Dropout)
    _expect("head.1", classifier, nn.Linear)
    _expect("conv_proj", model.conv_proj, nn.Conv3d)
    for i, block in enumerate(model.blocks):
        _expect(f"blocks.{i}", block, tv.MultiscaleBlock)
        _expect(f"blocks.{i}.attn", block.attn, tv.MultiscaleAttention)
        _expect(f"blocks.{i}.mlp.1", block.mlp[1], nn.GELU)
        for pool in (block.attn.pool_q, block.attn.pool_k, block.attn.pool_v):
            if pool is not None:
                _expect(f"a pool of blocks.{i}.attn", pool.pool, nn.Conv3d)
    norms = [(name, m) for name, m in model.named_modules() if _is_norm_slot(name)]
    for name, norm in norms:
        _expect(name, norm, nn.LayerNorm)

    blocks, attentions = list(model.blocks), [block.attn for block in model.blocks]
    position, patch = model.pos_encoding, model.conv_proj
    grid = (position.temporal_size, *position.spatial_size)
    frames, height, width = (n * s for n, s in zip(grid, patch.stride, strict=True))
    rel_pos = _same("rel_pos_h", attentions, lambda a: a.rel_pos_h is not None)
    with_cls = _same("residual_with_cls_embed", attentions, lambda a: a.residual_with_cls_embed)
    eps, weight, bias = _same("LayerNorms", norms, lambda n: (n[1].eps, n[1].weight is not None, n[1].bias is not None))
    config = MViTConfig(
        num_frames=frames,
        crop_size=(height, width),
        input_channels=patch.in_channels,
        num_classes=classifier.out_features,
        patch_kernel=patch.kernel_size,
        patch_stride=patch.stride,
        patch_padding=patch.padding,
        embed_dim=patch.out_channels,
        num_heads=attentions[0].num_heads,
        depth=len(blocks),
        block_setting=tuple(_block(block) for block in blocks),
        dim_mul_in_att=_same("proj_after_attn", blocks, lambda b: b.proj_after_attn),
        use_abs_pos=position.spatial_pos is not None,
        sep_pos_embed=True,
        rel_pos_spatial=rel_pos,
        rel_pos_temporal=rel_pos,
        rel_pos_index="torchvision",
        residual_pooling=_same("residual_pool", attentions, lambda a: a.residual_pool),
        residual="all" if with_cls else "no_cls",
        dropout_rate=_same("dropout", blocks, lambda b: b.mlp[2].p),
        droppath_rate=blocks[-1].stochastic_depth.p,
        head_dropout_rate=head_dropout.p,
        norm_layer=partial(nn.LayerNorm, eps=eps, elementwise_affine=weight, bias=bias),
    )
    with torch.device("meta"):  # no memory and no time for weights that are replaced at once
        ours = MViT(config)
    weights = convert_state_dict(model.state_dict(), from_="torchvision", to="mvit_kernels")
    ours.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, assign=True)
    return ours.train(model.training)


def _block(block: Any) -> BlockConfig:
    attention = block.attn
    kernel_q, stride_q = _pooling(attention.pool_q)
    kernel_kv, stride_kv = _pooling(attention.pool_k)
    return BlockConfig(
        dim=attention.embed_dim,
        dim_out=block.mlp[3].out_features,
        num_heads=attention.num_heads,
        kernel_q=kernel_q,
        kernel_kv=kernel_kv,
        stride_q=stride_q,
        stride_kv=stride_kv,
    )


def _pooling(pool: Any) -> tuple[Sizes, Sizes]:
    return ((), ()) if pool is None else (pool.pool.kernel_size, pool.pool.stride)


def _is_norm_slot(name: str) -> bool:
    last = name.rsplit(".", 1)[-1]
    return last in ("norm", "norm1", "norm2") or name.endswith(".norm_act.0")


def _expect(name: str, module: object, kind: type) -> None:
    if type(module) is not kind:
        raise TypeError(f"from_torchvision: {name} is a {type(module).__name__}, a {kind.__name__} is right")


def _same(name: str, items: Iterable[Any], value: Callable[[Any], T]) -> T:
    values = [value(item) for item in items]
    if any(other != values[0] for other in values):
        raise ValueError(f"from_torchvision: {name} differs from block to block, the same in all is right")
    return values[0]
