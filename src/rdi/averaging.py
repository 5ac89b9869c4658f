"""A moving average of a network's weights while it is trained, with BatchNorm statistics of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager

import torch
from torch.optim.swa_utils import AveragedModel, update_bn

from rdi.data.augment import draw
from rdi.data.base import Split
from rdi.data.batches import Shuffled, to_float
from rdi.data.streamed import fetch
from rdi.defenses.base import Defense
from rdi.exits.net import MultiExitNet
from rdi.ranks import Share
from rdi.seeds import generator
from rdi.training_settings import Settings, layout

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]

STATISTICS_BATCHES = 40
"""Batches from which BatchNorm statistics of averaged weights are measured."""


class WeightAverage:
    """Exponential moving average: average <- d * average + (1 - d) * weights after every step.

    model: the network that is trained.
    decay: d, in [0, 1); early on d is at most (1 + n) / (10 + n) after n steps, so that the start is forgotten.

    The averaged network is `net`. Its BatchNorm statistics are not averaged: `refresh` measures them.
    """

    def __init__(self, model: MultiExitNet, decay: float) -> None:
        self.decay = decay
        self._averaged = AveragedModel(model, multi_avg_fn=self._average, use_buffers=False)

    @property
    def net(self) -> MultiExitNet:
        """The averaged network."""
        net = self._averaged.module
        assert isinstance(net, MultiExitNet)
        return net

    def _average(self, averaged: Tensors, weights: Tensors, steps: torch.Tensor | int) -> None:
        count = int(steps)
        decay = min(self.decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(averaged, weights, 1 - decay)

    def update(self, model: MultiExitNet) -> None:
        """Take in the weights of `model` after a step."""
        self._averaged.update_parameters(model)

    def refresh(self, batches: Iterable[torch.Tensor], autocast: Callable[[], AbstractContextManager[None]]) -> None:
        """Measure the BatchNorm statistics of the averaged weights on x_NCHW batches, by equal shares.

        autocast: makes the context that forward passes run in.
        """
        with autocast():
            update_bn(batches, self.net)

    def state(self) -> dict[str, torch.Tensor]:
        """Return what the next average depends on."""
        return self._averaged.state_dict()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Be as the average whose `state` this is. Raises RuntimeError for that of another network."""
        self._averaged.load_state_dict(state)


def statistics_batches(
    net: MultiExitNet, defense: Defense, train: Split, share: Share, settings: Settings
) -> Iterator[torch.Tensor]:
    """Return STATISTICS_BATCHES batches of what `net` would be trained on, the same ones at every call.

    share: of each batch, the rows that this process has are returned. Each is crafted when it is asked for, on a copy
    of the network as it is now, in eval mode.
    """
    device = train.images.device
    shuffled = Shuffled(len(train), share.total, settings.seed)
    frozen = copy.deepcopy(net).eval()

    def batch(number: int, images: torch.Tensor) -> torch.Tensor:
        stream = share.generator(generator(device, settings.seed, "statistics", number))
        index = shuffled.indices(number).to(device)
        shape = torch.Size((share.total, *train.images.shape[1:]))
        placement = draw(shape, settings.augment, stream, device).part(share.rows)
        index = index[share.rows]
        x = to_float(placement.place(images)).to(memory_format=layout(settings))
        return defense.images(frozen, x, train.labels[index], stream)

    requests = shuffled.requests(range(STATISTICS_BATCHES), share.rows, settings.augment, train.indices, "statistics")
    return map(batch, range(STATISTICS_BATCHES), fetch(train.images, requests))
