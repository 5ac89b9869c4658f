"""A moving average of a network's weights while it is trained, with BatchNorm statistics of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch.optim.swa_utils import AveragedModel, update_bn

from rdi.exits.net import MultiExitNet

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


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

    def _average(self, averaged: Tensors, weights: Tensors, seen: torch.Tensor | int) -> None:
        count = int(seen)
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
