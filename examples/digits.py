"""Data and model that the training examples share: scikit-learn's digits, 1797 real scans, as clips that move."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models.video.mvit import MSBlockConfig, MViT

FRAMES, SIDE = 4, 24


def moving_digits(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clips (1797, 3, FRAMES, SIDE, SIDE) in about [-1, 1] and labels (1797,), shuffled.

    Each 8x8 scan, doubled in size, starts somewhere in the frame and moves by up to 3 pixels a frame.
    """
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    images = F.interpolate(images, scale_factor=2, mode="bilinear")[:, 0]
    generator = torch.Generator().manual_seed(seed)
    room = SIDE - images.shape[-1]
    start = torch.randint(room + 1, (len(images), 2), generator=generator)
    step = torch.randint(-3, 4, (len(images), 2), generator=generator)
    clips = torch.zeros(len(images), FRAMES, SIDE, SIDE)
    for t in range(FRAMES):
        corner = (start + t * step).clamp(0, room)
        for clip, image, (y, x) in zip(clips, images, corner.tolist(), strict=True):
            clip[t, y : y + image.shape[0], x : x + image.shape[1]] = image
    order = torch.randperm(len(images), generator=generator)
    clips = (2 * clips - 1)[:, None].expand(-1, 3, -1, -1, -1)
    return clips[order], torch.from_numpy(digits.target)[order]


def small_mvit(classes: int = 10) -> nn.Module:
    """torchvision's MViTv2 with three blocks, 16 to 32 channels."""
    blocks = [
        MSBlockConfig(1, 16, 16, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 4, 4]),
        MSBlockConfig(2, 16, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 2, 2]),
        MSBlockConfig(2, 32, 32, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
    ]
    return MViT(
        (SIDE, SIDE),
        FRAMES,
        blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=classes,
        dropout=0.0,
    )
