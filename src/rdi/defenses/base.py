"""Defenses: a training loss on a multi-exit network, and the attack that its progress is judged by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from rdi.attacks.base import Attack, crafting
from rdi.attacks.engine import Engine, FastCopy
from rdi.attacks.objectives import cross_entropy
from rdi.attacks.simplex import MinMaxWeights
from rdi.checks import number
from rdi.data.augment import Placement
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet
from rdi.ranks import Share, whole_batch

Logs = dict[str, torch.Tensor]
"""Detached scalars and per-exit vectors for the log; left on the device, so that no step waits for them."""


@dataclass(frozen=True)
class Origin:
    """Origin of a batch, for defenses that remember images from epoch to epoch.

    index: rows_N of the training images, int64.
    placement: how they were cropped and flipped.
    samples: number of training images.
    epoch: 0-based.
    share: how the batch is shared with other processes; None: it is not.
    """

    index: torch.Tensor
    placement: Placement
    samples: int
    epoch: int
    share: Share | None = None

    def store(self, stored: torch.Tensor, augmented: torch.Tensor) -> None:
        """Write augmented_NCHW back, in place, into stored_MCHW of all training images; see Placement.store.

        The rows of other processes are written too, so that all hold the same.
        """
        if self.share is None:
            self.placement.store(stored, self.index, augmented)
            return
        gather = self.share.gather
        self.placement.gathered(gather).store(stored, gather(self.index), gather(augmented))


class Parts:
    """The parts that the batch of each step is computed in, one after the other, each with a loss of its own.

    count: of a batch, at least 1.
    first: whether the next part is the first one of a step.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self._done, self._images = 0, 0
        self._sum: torch.Tensor | None = None

    @property
    def first(self) -> bool:
        """Return whether the next part is the first one of a step."""
        return self._done == 0

    def mean(self, values: torch.Tensor, images: int) -> torch.Tensor:
        """Return the mean over the images of this step up to those of this part, which is not yet `over`.

        values: means over the images of this part, without graph; images: how many they are, on all ranks.
        """
        if self.count == 1:
            return values
        before, so_far = (0, values * images) if self._sum is None else (self._images, self._sum + values * images)
        self._sum, self._images = so_far, before + images
        return so_far / self._images

    def over(self) -> bool:
        """Count a part. Return whether it was the last one of its step."""
        self._done = (self._done + 1) % self.count
        if self.first:
            self._sum, self._images = None, 0
        return self.first


class Defense(ABC):
    """A training loss over all exits: sum over exits k of exit_weights[k] * loss_k.

    exit_weights: E numbers >= 0, not all 0, default 1 for each exit (the sum, not the mean, as published).
    engine: makes the copy of the network that attacks are crafted on; None: they are crafted on the network itself.
    attack: what the calibration split is attacked with while training, or None.
    steps: of the whole training, see `begin`.
    parts: that the batch of a step is computed in.
    origin: of the batch of the next loss, set by the training loop; None: not a batch of training images.
    """

    attack: Attack | None = None
    steps: int = 1
    origin: Origin | None = None

    def __init__(self, *, exit_weights: Sequence[float] | None = None, engine: Engine | None = None) -> None:
        self.engine = engine
        self._copy: FastCopy | None = None
        self.parts = Parts()
        self.exit_weights: list[float] | MinMaxWeights | None = (
            None
            if exit_weights is None
            else [number("defense.exit_weights", weight, 0, float("inf")) for weight in exit_weights]
        )
        if exit_weights is not None and not any(exit_weights):
            raise UserError("defense.exit_weights must not all be 0: nothing would be trained")

    def begin(self, steps: int, parts: int = 1) -> None:
        """Learn what is to come, before the first step of this process.

        steps: of the whole training. parts: that every batch is computed in; each has a loss.
        """
        self.steps, self.parts = steps, Parts(parts)

    def schedule(self, exits: int, step: int, steps: int) -> tuple[int, int]:
        """Return the step and the number of steps that the learning rate is of.

        exits: of the network.
        step: 0-based, of the `steps` of the whole training.
        """
        del exits
        return step, steps

    @abstractmethod
    def loss(
        self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, Logs]:
        """Return (scalar loss with graph, logs) of a batch.

        model: in training mode.
        x: images_NCHW in [0, 1].
        y: labels_N.
        generator: of random starts.
        """

    def share(self, images: int) -> Share:
        """Return how the batch of this loss, of which this process has `images` rows, is shared with others."""
        if self.origin is None or self.origin.share is None:
            return whole_batch(images)
        return self.origin.share

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Return logits_NEC or labels_N of the whole batch, with graph, out of those of this process's images.

        A loss that is no mean over images, or remembers what it saw, takes them so. Where no others share the batch,
        these are all.
        """
        return self.share(len(rows)).gather(rows)

    def answers(self, logits_NEC: torch.Tensor) -> torch.Tensor:
        """Return logits_NEC that held-out images are judged by; by default the exits' own."""
        return logits_NEC

    def after_backward(self) -> None:  # noqa: B027 - most defenses have nothing to do here
        """Undo what the loss did to the weights, before the optimiser's step."""

    def state(self) -> dict[str, Any]:
        """Return what the next loss depends on apart from the network; plain values and tensors, {} if nothing."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Be as the defense whose `state` this is; {} is the state before the first step.

        Raises ValueError or TypeError for the state of another defense.
        """
        if state:
            raise ValueError(f"{type(self).__name__} has no state")

    def images(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return images_NCHW that the network is trained on, for BatchNorm statistics of averaged weights."""
        return x

    def one_step(
        self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor | None:
        """Craft x_adv_NCHW as one-step training does, to compare with the attack; None where training is multi-step."""
        return None

    @contextmanager
    def crafting_network(self, model: MultiExitNet) -> Iterator[MultiExitNet]:
        """Give the network to craft on: the engine's copy with the present weights, or `model`, frozen for the time."""
        if self.engine is None:
            with crafting(model):
                yield model
            return
        if self._copy is None or not self._copy.follows(model):
            self._copy = self.engine.copy(model)
        yield self._copy.refresh()

    def craft(
        self, attack: Attack, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Craft x_adv_NCHW by `attack` against the present weights of `model`; that x is in [0, 1] is not checked."""
        if self.engine is None:
            return attack.craft(model, x, y, generator)
        # the copy has a precision of its own
        with self.crafting_network(model) as net, torch.autocast(x.device.type, enabled=False):
            return attack.craft(net, x.to(memory_format=self.engine.memory_format), y, generator)

    def weighted_loss(self, logits_NEC: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Sum over exits of weight * mean cross-entropy. Raises UserError for a wrong number of weights."""
        losses_E = cross_entropy(logits_NEC.float(), y).mean(dim=0)
        return (losses_E * losses_E.new_tensor(self.checked_weights(len(losses_E)))).sum()

    def checked_weights(self, exits: int) -> list[float]:
        """Return one weight per exit. Raises UserError for a wrong number of weights."""
        if self.exit_weights is None or isinstance(self.exit_weights, MinMaxWeights):
            return [1.0] * exits
        if len(self.exit_weights) != exits:
            raise UserError(
                f"defense.exit_weights must list {exits} numbers, one per exit, got {len(self.exit_weights)}"
            )
        return self.exit_weights


class CountingDefense(Defense):
    """A defense whose loss depends on how many steps were made, which it counts in `step`."""

    def __init__(self, *, exit_weights: Sequence[float] | None = None, engine: Engine | None = None) -> None:
        super().__init__(exit_weights=exit_weights, engine=engine)
        self.step = 0

    def state(self) -> dict[str, Any]:
        """Return the number of steps made."""
        return {"step": self.step}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over the number of steps. Raises ValueError for the state of another defense."""
        if state and set(state) != {"step"}:
            raise ValueError(f"{type(self).__name__} has no state {sorted(state)}")
        self.step = int(state.get("step", 0))


def accuracy_per_exit(logits_NEC: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the share of correct samples at each exit, in [0, 1], shape E; detached."""
    return (logits_NEC.detach().argmax(dim=2) == y[:, None]).float().mean(dim=0)
