"""Training recipes: optimiser, batch size, length and learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rdi.checks import choice, flag, integer, number
from rdi.errors import UserError

SCHEDULES = ("constant", "multistep", "cosine", "one_cycle")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training schedule.

    optimizer: parameters -> torch optimiser (in the config a `_partial_` node).
    batch_size: images per step.
    accumulate: parts that a batch is computed in, one after the other, whose gradients are added: memory is needed for
        one. The loss is that of the whole batch, but BatchNorm and losses that couple images see a part of it, and the
        accuracies in the log are those of the last part.
    iterations: the length in steps; None: it is given in epochs.
    epochs: the length in passes over the images; None: it is given in iterations.
    lr: the peak rate.
    warmup: share of the steps, in [0, 1), over which lr rises linearly from 0.
    schedule: "constant"; "multistep"; "cosine": to 0; "one_cycle": linear up over `warmup`, linear down to 0.
    milestones: of "multistep", shares of the length, in (0, 1].
    gamma: what "multistep" multiplies the rate with at each milestone.
    decay_vectors: whether the optimiser's weight decay also holds for BatchNorm and biases.
    average: decay of a moving average of the weights, in [0, 1), which is then what is judged and kept; None: none.
    Raises UserError for values out of range.
    """

    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    batch_size: int
    lr: float
    iterations: int | None = None
    epochs: float | None = None
    schedule: str = "multistep"
    milestones: Sequence[float] = ()
    gamma: float = 0.1
    warmup: float = 0.0
    decay_vectors: bool = True
    average: float | None = None
    accumulate: int = 1

    def __post_init__(self) -> None:
        integer("optim.batch_size", self.batch_size, 1)
        if integer("optim.accumulate", self.accumulate, 1) > self.batch_size:
            raise UserError(
                f"optim.accumulate must be at most optim.batch_size={self.batch_size}, got {self.accumulate}"
            )
        number("optim.lr", self.lr, 0, math.inf, open_low=True)
        choice("optim.schedule", self.schedule, SCHEDULES)
        number("optim.gamma", self.gamma, 0, 1, open_low=True)
        if number("optim.warmup", self.warmup, 0, 1) == 1:
            raise UserError("optim.warmup is the share of the steps that warm up and must be below 1")
        flag("optim.decay_vectors", self.decay_vectors)
        if isinstance(self.milestones, str) or not isinstance(self.milestones, Sequence):
            raise UserError(f"optim.milestones must list shares of the length, as [0.5, 0.75], got {self.milestones!r}")
        for milestone in self.milestones:
            number("optim.milestones", milestone, 0, 1, open_low=True)
        if (self.iterations is None) == (self.epochs is None):
            raise UserError(
                "give one of optim.iterations and optim.epochs and set the other to null "
                f"(now {self.iterations} and {self.epochs})"
            )
        if self.iterations is not None:
            integer("optim.iterations", self.iterations, 1)
        else:
            number("optim.epochs", self.epochs, 0, math.inf, open_low=True)

        if self.average is not None and number("optim.average", self.average, 0, 1) == 1:
            raise UserError("optim.average is the decay of a moving average and must be below 1")

    def build_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the optimiser of `parameters`; without decay_vectors those of one dimension get no weight decay."""
        if self.decay_vectors:
            return self.optimizer(parameters)
        listed = list(parameters)
        matrices = [parameter for parameter in listed if parameter.ndim > 1]
        vectors = [parameter for parameter in listed if parameter.ndim <= 1]
        groups: Any = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        return self.optimizer([group for group in groups if group["params"]])

    def steps(self, samples: int) -> int:
        """Return the number of optimiser steps.

        samples: number of training images.
        Raises UserError for fewer than a batch.
        """
        if self.batch_size > samples:
            raise UserError(f"optim.batch_size={self.batch_size}, but there are {samples} images to train on: lower it")
        if self.iterations is not None:
            return self.iterations
        assert self.epochs is not None, "checked on construction"
        return max(1, round(self.epochs * samples / self.batch_size))

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of 0-based `step` out of `steps`."""
        warm = round(self.warmup * steps)
        if step < warm:
            return self.lr * (step + 1) / warm
        progress = (step - warm) / max(1, steps - warm)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * progress))
        if self.schedule == "one_cycle":
            return self.lr * (1 - progress)
        if self.schedule == "multistep":
            return self.lr * self.gamma ** sum(step >= round(m * steps) for m in self.milestones)
        return self.lr
