"""MSDNet for small images (Huang et al., ICLR 2018): features at several scales, densely connected, exits built in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rdi.backbones.base import Backbone, HeadFactory, feature_shapes
from rdi.backbones.resnet import init_he
from rdi.checks import choice, integer
from rdi.errors import UserError

HEAD_CHANNELS = 128
MOST_LAYERS = 200
STEP_MODES = ("even", "grow")

Shapes = tuple[tuple[int, ...], ...]
"""CHW of the features at every scale, the finest first."""


def conv_bn_relu(in_channels: int, channels: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Return convolution, BatchNorm and ReLU."""
    convolution = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def bottleneck(in_channels: int, channels: int, stride: int, factor: int) -> nn.Sequential:
    """Return a 1x1 convolution to at most factor * channels, then a 3x3 one to `channels`."""
    inner = min(in_channels, factor * channels)
    return nn.Sequential(*conv_bn_relu(in_channels, inner, 1), *conv_bn_relu(inner, channels, 3, stride))


class Unpack(nn.Module):
    """Split features_ND into one tensor NCHW per scale."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.shapes = shapes
        self.sizes = [math.prod(shape) for shape in shapes]

    def forward(self, packed: torch.Tensor) -> list[torch.Tensor]:
        """Map features_ND to features_NCHW per scale, the finest first."""
        parts = torch.split(packed, self.sizes, dim=1)
        return [parts[i].unflatten(1, shape) for i, shape in enumerate(self.shapes)]


class Coarsest(nn.Module):
    """Take the coarsest scale, what exits classify, out of packed features.

    shape: its CHW.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """Map features_ND to the features_NCHW of the coarsest scale."""
        return packed[:, -math.prod(self.shape) :].unflatten(1, self.shape)


class Stem(nn.ModuleList):
    """Image -> features of every scale: a 3x3 convolution each, strided from the second on."""

    def __init__(self, in_channels: int, channels: int, scales: int) -> None:
        super().__init__()
        for scale in range(scales):
            width = channels * 2**scale
            self.append(nn.Sequential(*conv_bn_relu(in_channels, width, 3, 1 if scale == 0 else 2)))
            in_channels = width

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map x_NCHW to features_NCHW per scale, the finest first."""
        features = []
        for part in self:
            x = part(x)
            features.append(x)
        return features


class DenseLayer(nn.Module):
    """Append `growth` * 2**scale channels at every scale, half of them made from the finer scale where there is one.

    channels: of the input, at factor 1.
    incoming, outgoing: number of scales, the coarsest ones; a finest scale that only comes in is read and dropped.
    """

    def __init__(self, channels: int, growth: int, scales: int, incoming: int, outgoing: int) -> None:
        super().__init__()
        self.dropped = incoming - outgoing
        first = scales - outgoing
        self.same, self.finer = nn.ModuleList(), nn.ModuleList()
        for scale in range(first, scales):
            factor = 2**scale
            alone = scale == first and not self.dropped
            made = growth * factor if alone else growth * factor // 2
            if not alone:
                self.finer.append(bottleneck(channels * factor // 2, made, 2, factor // 2))
            self.same.append(bottleneck(channels * factor, made, 1, factor))

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Map the features of all scales, the finest first, to more channels, less a dropped scale."""
        first = len(self.same) - len(self.finer)
        made = []
        for i, same in enumerate(self.same):
            kept = features[i + self.dropped]
            parts = [kept]
            if i >= first:
                parts.append(self.finer[i - first](features[i + self.dropped - 1]))
            made.append(torch.cat([*parts, same(kept)], dim=1))
        return made


class Transition(nn.ModuleList):
    """Halve the channels of every scale by 1x1 convolutions."""

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Map the features of all scales to fewer channels."""
        return [part(x) for part, x in zip(self, features, strict=True)]


class Block(nn.Module):
    """The layers between two exits. Features go in and out packed: all scales of a sample in one row, features_ND.

    unpack: None for the first block, which takes images_NCHW.
    """

    def __init__(self, unpack: Unpack | None, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.unpack = unpack
        self.layers = nn.ModuleList(layers)

    def scales(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the features_NCHW of every scale behind the block, the finest first."""
        features: Any = x if self.unpack is None else self.unpack(x)
        for layer in self.layers:
            features = layer(features)
        found: list[torch.Tensor] = features
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images_NCHW or features_ND to features_ND."""
        return torch.cat([one.flatten(1) for one in self.scales(x)], dim=1)


def msdnet(
    shape: Sequence[int],
    classes: int,
    *,
    exits: int = 7,
    base: int = 4,
    step: int = 2,
    step_mode: str = "even",
    channels: int = 16,
    growth: int = 6,
    scales: int = 3,
) -> Backbone:
    """Build MSDNet, one block per exit; `exits=paper` puts its own classifier behind each, on the coarsest scale.

    shape: (C, H, W) of one image.
    classes: number of classes.
    exits: 1 to 32, the last included.
    base: layers before the first exit.
    step: layers between two exits.
    step_mode: "even"; with "grow" there are step * i + 1 layers before exit i instead.
    channels: of the stem at the finest scale; every coarser scale has twice as many.
    growth: channels that a layer adds at the finest scale, even; twice as many at every coarser one.
    scales: 1 to 4. The finest one left is dropped after each of as many equal parts of the depth, and a 1x1 convolution
        then halves the channels of the others, as in the authors' PyTorch code (prune "max", reduction 0.5).
    Raises UserError for values out of range and images too small.
    Source: Huang et al., ICLR 2018. The head pools to one position whatever the size of the image, which is the
        authors' 2x2 pooling at 32x32.
    """
    exits = integer("backbone.exits", exits, 1, 32)
    base = integer("backbone.base", base, 1, MOST_LAYERS)
    step = integer("backbone.step", step, 1, MOST_LAYERS)
    choice("backbone.step_mode", step_mode, STEP_MODES)
    width = integer("backbone.channels", channels, 1, 1024)
    growth = integer("backbone.growth", growth, 2, 1024)
    scales = integer("backbone.scales", scales, 1, 4)
    if growth % 2:
        raise UserError(f"backbone.growth must be even, as half of the channels come from the finer scale: {growth}")
    steps = [base, *(step if step_mode == "even" else step * i + 1 for i in range(1, exits))]
    if (depth := sum(steps)) > MOST_LAYERS:
        raise UserError(f"backbone.base, step and exits ask for {depth} layers: at most {MOST_LAYERS} are built")
    interval = math.ceil(depth / scales)

    blocks: list[nn.Module] = []
    coarsest: list[tuple[int, ...]] = []
    shapes: Shapes = ()
    done = 0
    for index, count in enumerate(steps):
        layers: list[nn.Module] = [Stem(shape[0], width, scales)] if index == 0 else []
        for _ in range(count):
            incoming = scales - max(0, done - 1) // interval
            outgoing = scales - done // interval
            layers.append(DenseLayer(width, growth, scales, incoming, outgoing))
            width += growth
            if incoming > outgoing:
                factors = [2**scale for scale in range(scales - outgoing, scales)]
                halves = [conv_bn_relu(width * factor, width // 2 * factor, 1) for factor in factors]
                layers.append(Transition(nn.Sequential(*half) for half in halves))
                width //= 2
            done += 1
        block = Block(None if index == 0 else Unpack(shapes), layers)
        init_he(block)
        shapes = _scale_shapes(block, shape if index == 0 else (sum(map(math.prod, shapes)),), shape)
        coarsest.append(shapes[-1])
        blocks.append(block)

    def head(features: tuple[int, ...]) -> HeadFactory:
        return lambda packed, classes: classifier(features, classes)

    return Backbone(
        blocks=tuple(blocks),
        shapes=feature_shapes(blocks, shape),
        classifier=classifier(coarsest[-1], classes),
        paper_exits=tuple((tap, head(features)) for tap, features in enumerate(coarsest[:-1])),
        input_shape=tuple(shape),
        classes=classes,
    )


@torch.no_grad()
def _scale_shapes(block: Block, given: Sequence[int], image: Sequence[int]) -> Shapes:
    try:
        features = block.eval().scales(torch.zeros(1, *given))
    except RuntimeError as error:
        size = "x".join(map(str, image))
        raise UserError(f"images of {size} do not fit this backbone: {str(error).splitlines()[0]}") from error
    finally:
        block.train()
    return tuple(tuple(one.shape[1:]) for one in features)


def classifier(features: tuple[int, ...], classes: int) -> nn.Module:
    """Return the head of an exit: two strided 3x3 convolutions on the coarsest scale, average pooling, linear."""
    return init_he(
        nn.Sequential(
            Coarsest(features),
            *conv_bn_relu(features[0], HEAD_CHANNELS, 3, 2),
            *conv_bn_relu(HEAD_CHANNELS, HEAD_CHANNELS, 3, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(HEAD_CHANNELS, classes),
        )
    )
