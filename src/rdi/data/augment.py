"""Augmentation of a whole batch on its device: random crop after zero padding, random horizontal flip."""

from __future__ import annotations

import torch
from torch.nn import functional as F

AUGMENTATIONS = ("none", "crop", "crop_flip")
PADDING = 4


def augment(images: torch.Tensor, kind: str, generator: torch.Generator) -> torch.Tensor:
    """images_NCHW (any dtype) -> the same shape. kind: one of AUGMENTATIONS; crop pads by 4 pixels of zero."""
    if kind == "none":
        return images
    count, _, height, width = images.shape
    device = images.device

    def draw(high: int) -> torch.Tensor:
        return torch.randint(high, (count,), generator=generator, device=device)

    rows = draw(2 * PADDING + 1)[:, None] + torch.arange(height, device=device)
    columns = draw(2 * PADDING + 1)[:, None] + torch.arange(width, device=device)
    if kind == "crop_flip":
        columns = torch.where(draw(2).bool()[:, None], columns.flip(1), columns)
    padded = F.pad(images, (PADDING,) * 4)
    sample = torch.arange(count, device=device)[:, None, None]
    # advanced indices around the channel slice put it last: N H W C
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
