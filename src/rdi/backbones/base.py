"""A backbone: a chain of blocks, the classifier behind it, and the places of the paper's exits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rdi.errors import UserError

HeadFactory = Callable[[tuple[int, ...], int], nn.Module]
"""(shape of the features after the tap, number of classes) -> head that maps these features to logits_NC."""


@dataclass(frozen=True)
class Backbone:
    """A plain network cut into blocks; exits attach to it after any block but the last.

    blocks: modules that are run one after the other; block i maps the features of block i-1 to its own.
    shapes: shape of one sample's features after each block (CHW), as many as blocks.
    classifier: maps the last block's features to logits_NC.
    paper_exits: (tap, head) pairs of the paper, tap = 0-based index of the block they follow.
    input_shape: (C, H, W) of an image.
    classes: number of classes C.
    names: name of the last module in each block, "" for one without; (): the blocks have numbers only.
    """

    blocks: tuple[nn.Module, ...]
    shapes: tuple[tuple[int, ...], ...]
    classifier: nn.Module
    paper_exits: tuple[tuple[int, HeadFactory], ...]
    input_shape: tuple[int, ...]
    classes: int
    names: tuple[str, ...] = ()


def feature_shapes(blocks: Sequence[nn.Module], input_shape: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the shape of one sample's features after each block, by running one zero image in eval mode.

    blocks: modules that are run one after the other.
    input_shape: (C, H, W) of an image.
    Raises UserError when the image is too small for the network.
    """
    shapes: list[tuple[int, ...]] = []
    modes = [block.training for block in blocks]
    try:
        with torch.no_grad():
            features = torch.zeros(1, *input_shape)
            for block in blocks:
                features = block.eval()(features)
                if 0 in features.shape:
                    raise RuntimeError("empty features")
                shapes.append(tuple(features.shape[1:]))
    except RuntimeError as error:
        size = "x".join(str(n) for n in input_shape)
        raise UserError(f"images of {size} do not fit this backbone: {str(error).splitlines()[0]}") from error
    finally:
        for block, mode in zip(blocks, modes, strict=True):
            block.train(mode)
    return tuple(shapes)
