"""Heads for `exits=custom`: classes (features, classes, **options) that fit after any block of any backbone."""

from __future__ import annotations

import torch
from torch import nn

from rdi.checks import integer

MOST_LAYERS = 16
"""Strides of 2: no image has positions left after so many."""


class PoolLinear(nn.Sequential):
    """Average over the positions and one linear layer: features_NCHW -> logits_NC.

    features: (C, H, W) behind the tap.
    classes: number of classes.
    """

    def __init__(self, features: tuple[int, ...], classes: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features[0], classes))


class ConvPool(nn.Sequential):
    """3x3 convolutions with BatchNorm and ReLU, each strided by 2, then PoolLinear: features_NCHW -> logits_NC.

    features: (C, H, W) behind the tap.
    classes: number of classes.
    channels: of each convolution, at least 1.
    layers: number of convolutions, 1 to 16.
    """

    def __init__(self, features: tuple[int, ...], classes: int, *, channels: int = 64, layers: int = 1) -> None:
        channels = integer("channels", channels, 1)
        modules: list[nn.Module] = []
        width = features[0]
        for _ in range(integer("layers", layers, 1, MOST_LAYERS)):
            modules += [nn.Conv2d(width, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            width = channels
        super().__init__(*modules, *PoolLinear((width,), classes))


class PoolMLP(nn.Sequential):
    """Average pooling to `grid` x `grid`, one hidden layer with ReLU, linear: features_NCHW -> logits_NC.

    features: (C, H, W) behind the tap.
    classes: number of classes.
    hidden: width of the hidden layer, at least 1.
    grid: side of the pooled features, at least 1.
    """

    def __init__(self, features: tuple[int, ...], classes: int, *, hidden: int = 128, grid: int = 2) -> None:
        grid = integer("grid", grid, 1)
        hidden = integer("hidden", hidden, 1)
        super().__init__(
            nn.AdaptiveAvgPool2d(grid),
            nn.Flatten(),
            nn.Linear(features[0] * grid * grid, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )


def output_classes(head: nn.Module, features: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the head's output for one sample, to check a user's head before training."""
    mode = head.training
    with torch.no_grad():
        shape = tuple(head.eval()(torch.zeros(1, *features)).shape[1:])
    head.train(mode)
    return shape
