"""RDI-SmallCNN (Hu et al., ICLR 2020): four convolutions, with the paper's two exit heads for MNIST."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import nn

from rdi.backbones.base import Backbone, feature_shapes
from rdi.checks import number

HIDDEN = 200


def smallcnn(shape: Sequence[int], classes: int, *, dropout: float = 0.5) -> Backbone:
    """Build the network of the paper's MNIST experiments: no BatchNorm, no padding, biases everywhere.

    Paper exits: after block 0 and after block 2.

    shape: (C, H, W) of one image, at least 16x16.
    classes: number of classes.
    dropout: in [0, 1].
    Raises UserError if the images are too small.
    """
    dropout = number("backbone.dropout", dropout, 0, 1)
    blocks = (
        nn.Sequential(nn.Conv2d(shape[0], 32, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(32, 64, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.MaxPool2d(2)),
    )
    shapes = feature_shapes(blocks, shape)
    last = nn.Linear(HIDDEN, classes)
    classifier = nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(shapes[-1]), HIDDEN),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        last,
    )

    # the heads of Hu et al. (ICLR 2020) have no ReLU: linear after max pooling. Kept, so that numbers compare
    def linear_layers(features: int, classes: int) -> list[nn.Module]:
        return [
            nn.Flatten(),
            nn.Linear(features, HIDDEN),
            nn.Dropout(dropout),
            nn.Linear(HIDDEN, HIDDEN),
            nn.Linear(HIDDEN, classes),
        ]

    def first_head(features: tuple[int, ...], classes: int) -> nn.Module:
        pool = nn.Sequential(nn.Conv2d(features[0], 16, 3, stride=2), nn.MaxPool2d(2))
        head = nn.Sequential(*pool, *linear_layers(prod(feature_shapes([pool], features)[0]), classes))
        return _init_convolutions(head)

    def second_head(features: tuple[int, ...], classes: int) -> nn.Module:
        pool = nn.MaxPool2d(2)
        return nn.Sequential(pool, *linear_layers(prod(feature_shapes([pool], features)[0]), classes))

    for block in blocks:
        _init_convolutions(block)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return Backbone(
        blocks=blocks,
        shapes=shapes,
        classifier=classifier,
        paper_exits=((0, first_head), (2, second_head)),
        input_shape=tuple(shape),
        classes=classes,
    )


def _init_convolutions(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module
