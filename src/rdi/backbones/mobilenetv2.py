"""MobileNetV2 for CIFAR (Sandler et al., CVPR 2018) with the exits of RDI-MobileNetV2 (Hu et al., ICLR 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from rdi.backbones.base import Backbone, HeadFactory, feature_shapes
from rdi.backbones.resnet import init_he, pooled_linear
from rdi.checks import number
from rdi.errors import UserError

# expansion, channels, blocks, stride of the first block
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM, LAST, PAPER_EXITS = 32, 1280, 6


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection. Stride-1 blocks are residual (1x1 shortcut if widths differ)."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.expand = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module | None = None
        if stride == 1:
            self.shortcut = nn.Identity()
            if in_channels != channels:
                self.shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x_NCHW to features_NCHW."""
        out = F.relu(self.bn1(self.expand(x)))
        out = F.relu(self.bn2(self.depthwise(out)))
        out = self.bn3(self.project(out))
        return out if self.shortcut is None else out + self.shortcut(x)


def mobilenetv2(shape: Sequence[int], classes: int, *, width: float = 1.0) -> Backbone:
    """Build MobileNetV2 of 19 layers: stem, 17 inverted residuals, 1x1 convolution.

    Paper exits: behind layers 2, 5, 8, 10, 13 and 16 (1-based), that is 19k//7 for k = 1..6.

    shape: (C, H, W) of an image.
    classes: number of classes.
    width: multiplies the channels of all layers but the stem, as the official code does; in (0, 4].
    """
    width = number("backbone.width", width, 0, 4, open_low=True)
    narrowest = min(base for _, base, *_ in STAGES)
    if int(narrowest * width) < 1:
        raise UserError(f"backbone.width={width:g} leaves no channel of {narrowest}: at least {1 / narrowest:g}")
    blocks: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(shape[0], STEM, 3, 1, 1, bias=False), nn.BatchNorm2d(STEM), nn.ReLU())
    ]
    channels = STEM
    for expansion, base, count, stride in STAGES:
        for index in range(count):
            out = int(base * width)
            blocks.append(InvertedResidual(channels, out, expansion, stride if index == 0 else 1))
            channels = out
    last = int(LAST * width)
    blocks.append(nn.Sequential(nn.Conv2d(channels, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU()))
    classifier = pooled_linear((last,), classes)
    for module in (*blocks, classifier):
        init_he(module)
    layers = len(blocks)
    taps = [layers * k // (PAPER_EXITS + 1) - 1 for k in range(1, PAPER_EXITS + 1)]
    heads: tuple[HeadFactory, ...] = (two_block_head, one_block_head, *[pooled_linear] * (PAPER_EXITS - 2))
    return Backbone(
        blocks=tuple(blocks),
        shapes=feature_shapes(blocks, shape),
        classifier=classifier,
        paper_exits=tuple(zip(taps, heads, strict=True)),
        input_shape=tuple(shape),
        classes=classes,
    )


def two_block_head(features: tuple[int, ...], classes: int) -> nn.Module:
    """Build the head of exit 1: two strided inverted residuals C -> 2C -> 4C. No ReLU before pooling, as published."""
    channels = features[0]
    return init_he(
        nn.Sequential(
            InvertedResidual(channels, 2 * channels, 6, 2),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            InvertedResidual(2 * channels, 4 * channels, 6, 2),
            nn.BatchNorm2d(4 * channels),
            *pooled_linear((4 * channels,), classes),
        )
    )


def one_block_head(features: tuple[int, ...], classes: int) -> nn.Module:
    """Build the head of exit 2: one strided inverted residual C -> C."""
    channels = features[0]
    return init_he(nn.Sequential(InvertedResidual(channels, channels, 6, 2), *pooled_linear((channels,), classes)))
