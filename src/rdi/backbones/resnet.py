"""CIFAR ResNets of depth 6n+2 (He et al., CVPR 2016) with the exits of RDI-ResNet38 (Hu et al., ICLR 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from rdi.backbones.base import Backbone, HeadFactory, feature_shapes
from rdi.checks import integer, number
from rdi.errors import UserError

CHANNELS = (16, 32, 64)
"""Channels of the three groups, as published."""
DEEPEST = 2000
"""The deepest that was published has 1202 layers (He et al., CVPR 2016)."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (1x1 convolution and BatchNorm where the shape changes)."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map x_NCHW to features_NCHW."""
        # in place: the tensors are this block's own, and a pass is 7 % faster for it on a CPU
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x), inplace=True)


def resnet(
    shape: Sequence[int],
    classes: int,
    *,
    depth: int = 38,
    width: float = 1.0,
    blocks: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
) -> Backbone:
    """Build a CIFAR ResNet: stem, groups of basic blocks, average pooling, linear.

    shape: C, H, W of an image.
    classes: number of them.
    depth: 6n+2 layers, from 14 to DEEPEST: three groups of n blocks. Not read where `blocks` is given.
    width: factor of all channel numbers, which are rounded; costs grow with its square.
    blocks: number of basic blocks per group, each >= 1; None: as `depth` says. The first block of every group but
        the first halves the image.
    channels: per group, each >= 1; None: 16, 32, 64, doubled for every further group.

    Block 0 is the stem, the basic blocks follow. Paper exits: after basic blocks n//4 and 3n//4 (0-based) of every
    group of n, but not after the very last block, where the classifier sits.
    Raises UserError for another depth, and where blocks and channels are not one positive number per group.
    """
    if blocks is None:
        n = (integer("backbone.depth", depth, 14, DEEPEST) - 2) // 6
        if depth != 6 * n + 2:
            raise UserError(f"backbone.depth must be 6n+2 (20, 38, 74, 110, 152, ...), got {depth}")
        groups = [n] * len(CHANNELS)
    else:
        groups = [integer("backbone.blocks", count, 1, DEEPEST) for count in listed("backbone.blocks", blocks)]
    wanted = [CHANNELS[0] * 2**group for group in range(len(groups))] if channels is None else channels
    if len(listed("backbone.channels", wanted)) != len(groups):
        raise UserError(f"backbone.channels must list one number per group, {len(groups)}, got {list(wanted)}")
    factor = number("backbone.width", width, 0, 64, open_low=True)
    widths = [max(1, round(factor * integer("backbone.channels", count, 1, 2**16))) for count in wanted]
    stem = nn.Sequential(nn.Conv2d(shape[0], widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
    modules: list[nn.Module] = [stem]
    paper_exits: list[tuple[int, HeadFactory]] = []
    before = widths[0]
    for group, (count, wide) in enumerate(zip(groups, widths, strict=True)):
        for index in range(count):
            modules.append(BasicBlock(before, wide, stride=2 if group > 0 and index == 0 else 1))
            before = wide
            if index in (count // 4, 3 * count // 4) and len(modules) <= sum(groups):
                paper_exits.append((len(modules) - 1, PAPER_HEADS[min(group, len(PAPER_HEADS) - 1)]))
    classifier = pooled_linear((before,), classes)
    for module in (*modules, classifier):
        init_he(module)
    return Backbone(
        blocks=tuple(modules),
        shapes=feature_shapes(modules, shape),
        classifier=classifier,
        paper_exits=tuple(paper_exits),
        input_shape=tuple(shape),
        classes=classes,
    )


def listed(name: str, values: Sequence[int]) -> list[int]:
    """Return the values as a list. Raises UserError for an empty one and for what is no list."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise UserError(f"{name} must list one number per group, as [1, 2, 3], got {values!r}")
    return list(values)


def pooled_linear(features: tuple[int, ...], classes: int) -> nn.Sequential:
    """Average over the positions, one linear layer: the head of group 3 and the final classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features[0], classes))


def conv_head(features: tuple[int, ...], classes: int) -> nn.Module:
    """Head of group 1: two pooled convolutions (C -> 4C 5x5, 4C -> 2C 3x3). No ReLU after the second, as published."""
    channels = features[0]
    return init_he(
        nn.Sequential(
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 4 * channels, 5, padding=2, bias=False),
            nn.BatchNorm2d(4 * channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4 * channels, 2 * channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * channels),
            *pooled_linear((2 * channels,), classes),
        )
    )


def block_head(features: tuple[int, ...], classes: int) -> nn.Module:
    """Head of group 2: max pooling, one basic block, average pooling, linear."""
    channels = features[0]
    return init_he(nn.Sequential(nn.MaxPool2d(2), BasicBlock(channels, channels), *pooled_linear((channels,), classes)))


PAPER_HEADS: tuple[HeadFactory, ...] = (conv_head, block_head, pooled_linear)


def init_he(module: nn.Module) -> nn.Module:
    """Initialise convolutions from N(0, sqrt(2 / (k*k*out))), BatchNorm to 1 and 0, as the official code."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, 0.0, math.sqrt(2.0 / fan))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
    return module
