"""The reference MViT v1 / v2 classifier, for video and images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..modules import MultiScaleBlock
from ..problem import Grid, tokens
from .config import MViTConfig
from .pos_embed import joint_pos_embed, separate_pos_embed


class MViT(nn.Module):
    """Patch embedding, position, multiscale blocks, norm, classifier (arXiv 2104.11227, 2112.01526).

    State-dict names are those of SlowFast's `MViT` (slowfast/models/video_model_builder.py), so its checkpoints load as
    they are. Differences in behaviour: the output is logits in evaluation too, and clips of any length and size run:
    position tables are resized to them.

    Args:
        config: the model; :func:`mvit_kernels.models.create` takes a published one by name.
    Raises:
        ValueError, TypeError: a field of the configuration that does not fit, named with what would.
    """

    def __init__(self, config: MViTConfig) -> None:
        super().__init__()
        self.config = config
        blocks = config.blocks()
        dim, last_dim = blocks[0].dim, blocks[-1].dim_out
        self.patch_embed = PatchEmbed(config, dim)
        self.cls_token = _embedding(1, dim) if config.cls_embed_on else None
        if config.use_abs_pos and config.sep_pos_embed:
            frames, height, width = config.patch_dims
            self.pos_embed_spatial = _embedding(height * width, dim)
            self.pos_embed_temporal = _embedding(frames, dim)
            self.pos_embed_class = _embedding(1, dim) if config.cls_embed_on else None
        elif config.use_abs_pos:
            self.pos_embed = _embedding(config.cls_embed_on + tokens(config.patch_dims), dim)
        if config.dropout_rate > 0.0:
            self.pos_drop = nn.Dropout(config.dropout_rate)
        self.blocks = nn.ModuleList(
            MultiScaleBlock(
                block.dim,
                block.dim_out,
                block.num_heads,
                input_size,
                mlp_ratio=config.mlp_ratio,
                qkv_bias=config.qkv_bias,
                drop_rate=config.dropout_rate,
                drop_path=config.droppath_rate * i / max(len(blocks) - 1, 1),
                norm_layer=config.norm_layer,
                kernel_q=block.kernel_q,
                kernel_kv=block.kernel_kv,
                stride_q=block.stride_q,
                stride_kv=block.stride_kv,
                mode=config.mode,
                has_cls_embed=config.cls_embed_on,
                pool_first=config.pool_first,
                rel_pos_spatial=config.rel_pos_spatial,
                rel_pos_temporal=config.rel_pos_temporal,
                rel_pos_zero_init=config.rel_pos_zero_init,
                residual_pooling=config.residual_pooling,
                dim_mul_in_att=config.dim_mul_in_att,
                separate_qkv=config.separate_qkv,
                rel_pos_index=config.rel_pos_index,
                residual=config.residual,
            )
            for i, (block, input_size) in enumerate(zip(blocks, config.input_sizes(), strict=True))
        )
        self.norm = config.norm_layer(last_dim)
        self.head = Head(last_dim, config.num_classes, config.head_dropout_rate)
        self.apply(_init_weights)
        with torch.no_grad():
            self.head.projection.weight.mul_(config.head_init_scale)
            self.head.projection.bias.mul_(config.head_init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Classify clips or images.

        Args:
            x: (B, input_channels, T, H, W), or (B, input_channels, H, W) for T = 1; any T, H, W.
        Returns:
            (B, num_classes) logits.
        Raises:
            ValueError, TypeError: x is no such tensor.
        """
        x, thw = self.patch_embed(x)
        x = self._embed_position(x, thw)
        for block in self.blocks:
            x, thw = block(x, thw)
        return self.head(self._summary(x))

    def _embed_position(self, x: Tensor, grid: Grid) -> Tensor:
        """(B, tokens(grid), C) -> (B, has_cls + tokens(grid), C)."""
        config = self.config
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if config.use_abs_pos:
            if config.sep_pos_embed:
                embed = separate_pos_embed(
                    self.pos_embed_spatial, self.pos_embed_temporal, self.pos_embed_class, config.patch_dims, grid
                )
            else:
                embed = joint_pos_embed(self.pos_embed, config.cls_embed_on, config.patch_dims, grid)
            x = x + embed
        return self.pos_drop(x) if config.dropout_rate > 0.0 else x

    def _summary(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, C): what the head classifies."""
        if self.config.use_mean_pooling:
            return self.norm(x[:, int(self.config.cls_embed_on) :].mean(1))
        x = self.norm(x)
        return x[:, 0] if self.config.cls_embed_on else x.mean(1)


class PatchEmbed(nn.Module):
    """Overlapping patches by one strided convolution: 3D, or 2D on every frame."""

    def __init__(self, config: MViTConfig, dim: int) -> None:
        super().__init__()
        conv = nn.Conv2d if config.patch_2d else nn.Conv3d
        self.proj = conv(
            config.input_channels,
            dim,
            kernel_size=config.patch_kernel,  # type: ignore[arg-type]
            stride=config.patch_stride,  # type: ignore[arg-type]
            padding=config.patch_padding,  # type: ignore[arg-type]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        """(B, channels, T, H, W) or (B, channels, H, W) -> tokens (B, T'*H'*W', C) and their grid (T', H', W')."""
        channels = self.proj.in_channels
        expected = f"a tensor (B, {channels}, T, H, W) or (B, {channels}, H, W) is right"
        if not isinstance(x, Tensor):
            raise TypeError(f"MViT: x is a {type(x).__name__}, {expected}")
        if x.dim() not in (4, 5) or x.shape[1] != channels:
            raise ValueError(f"MViT: x has shape {tuple(x.shape)}, {expected}")
        clip = x.unsqueeze(2) if x.dim() == 4 else x
        if isinstance(self.proj, nn.Conv2d):
            frames = self.proj(clip.transpose(1, 2).flatten(0, 1))  # (B*T, C, H', W')
            patches = frames.unflatten(0, (clip.shape[0], clip.shape[2])).transpose(1, 2)
        else:
            patches = self.proj(clip)
        _, _, t, h, w = patches.shape
        return patches.flatten(2).transpose(1, 2), (t, h, w)


class Head(nn.Module):
    """Dropout and the classifier."""

    def __init__(self, dim: int, num_classes: int, dropout_rate: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout_rate)
        self.projection = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) -> (B, num_classes) logits."""
        return self.projection(self.dropout(x))


def _embedding(rows: int, dim: int) -> nn.Parameter:
    return nn.init.trunc_normal_(nn.Parameter(torch.zeros(1, rows, dim)), std=0.02)  # type: ignore[return-value]


def _init_weights(module: nn.Module) -> None:
    """SlowFast's initialisation, biases of 0.02 included."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
        nn.init.constant_(module.bias, 0.02)
