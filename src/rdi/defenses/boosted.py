"""Boosted exits: exit t is trained on the averaged logits of the exits up to t."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rdi.attacks.base import Attack
from rdi.attacks.engine import Engine
from rdi.attacks.objectives import cross_entropy
from rdi.checks import number
from rdi.defenses.base import CountingDefense, Logs, accuracy_per_exit
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet


class Boosted(CountingDefense):
    """Cross-entropy of the mean logits of exits 0..t, for every exit t: what the ensemble policy answers with there.

    frozen: True: the training has one round per exit, of equal lengths; in round t stage t and its head alone are
        trained, on the mean of exits 0..t, the stages before as they are in use (no gradient, BatchNorm in eval mode)
        and those behind not run, and the learning rate goes through its whole schedule. That is margin boosting with
        the stages as its learners (Zhang et al., ICML 2022; its warm start has no counterpart: stage t starts from
        its own weights). False: all exits are trained at once, on the sum of their losses.
    attack: crafts the training images, on the exits that are trained so far, and judges the held-out ones;
        rdi.attacks.Ensemble climbs the same mean.
    adversarial_weight: of the attacked against the clean images in the loss, in [0, 1]; 1 as published.
    exit_weights: factors of the losses, as of every defense; with frozen there is one loss at a time.
    The accuracies in the log are those of the mean, on held-out images too. Raises UserError for values out of range,
    and with frozen for a stage that has nothing to train.
    """

    def __init__(
        self,
        *,
        attack: Attack,
        frozen: bool = False,
        adversarial_weight: float = 1.0,
        exit_weights: Sequence[float] | None = None,
        engine: Engine | None = None,
    ) -> None:
        super().__init__(exit_weights=exit_weights, engine=engine)
        if not isinstance(frozen, bool):
            raise UserError(f"defense.frozen must be true or false, got {frozen!r}")
        self.attack: Attack = attack
        self.frozen = frozen
        self.adversarial_weight = number("defense.adversarial_weight", adversarial_weight, 0, 1)
        self._prefix: tuple[MultiExitNet, MultiExitNet] | None = None  # a network and its part up to the round's exit

    def schedule(self, exits: int, step: int, steps: int) -> tuple[int, int]:
        """Return step and steps of the round, which goes through the whole schedule by itself; see Defense."""
        if not self.frozen:
            return step, steps
        number = self.round(exits, step, steps)
        begin, end = number * steps // exits, (number + 1) * steps // exits
        return step - begin, end - begin

    @staticmethod
    def round(exits: int, step: int, steps: int) -> int:
        """Return the exit that is trained at the 0-based `step` of `steps`."""
        return max(k for k in range(exits) if k * steps // exits <= step)

    def loss(
        self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, Logs]:
        """Return the loss of the exits in training, and the accuracy of the mean logits up to each exit as logs."""
        newest = self.round(model.exits, min(self.step, self.steps - 1), self.steps) if self.frozen else None
        self.step += self.parts.over()
        part = model if newest is None else self.prefix(model, newest)
        parts: dict[str, tuple[float, torch.Tensor]] = {}
        if self.adversarial_weight < 1:
            parts["clean"] = 1 - self.adversarial_weight, x
        if self.adversarial_weight > 0:
            parts["robust"] = self.adversarial_weight, self.craft(self.attack, part, x, y, generator)
        weights = self.checked_weights(model.exits)
        loss, labels = torch.zeros((), device=x.device), self.gather(y)
        logs: Logs = {}
        for name, (share, images) in parts.items():
            logits = model(images) if newest is None else staged(model, images, newest)
            means = self.gather(running_means(logits.float()))
            if newest is None:
                loss = loss + share * self.weighted_loss(means, labels)
            else:
                loss = loss + share * weights[newest] * cross_entropy(means[:, newest:], labels).mean()
            logs[f"{name}_accuracy"] = accuracy_per_exit(means, labels)
        return loss, {"loss": loss.detach(), **logs}

    def images(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return what the network is trained on: clean images, attacked ones, or both."""
        if self.adversarial_weight == 0:
            return x
        attacked = self.craft(self.attack, model, x, y, generator)
        return torch.cat([x, attacked]) if self.adversarial_weight < 1 else attacked

    def answers(self, logits_NEC: torch.Tensor) -> torch.Tensor:
        """Return the mean logits up to each exit, which are what is trained."""
        return running_means(logits_NEC.float())

    def prefix(self, model: MultiExitNet, last: int) -> MultiExitNet:
        """Return the part of `model` up to exit `last`, the same object while model and exit are."""
        if self._prefix is None or self._prefix[0] is not model or self._prefix[1].exits != last + 1:
            for k, stage in enumerate(model.stages):
                if not any(parameter.requires_grad for parameter in stage.parameters()):
                    raise UserError(
                        f"defense.frozen=true trains stage after stage, and stage {k} has no weights: set it to false"
                    )
            part = MultiExitNet(model.stages[: last + 1], model.heads[: last + 1])
            self._prefix = (model, part)
        return self._prefix[1]


def running_means(logits_NKC: torch.Tensor) -> torch.Tensor:
    """Return the mean logits_NKC of the exits up to each."""
    count = torch.arange(1, logits_NKC.shape[1] + 1, device=logits_NKC.device, dtype=logits_NKC.dtype)
    return logits_NKC.cumsum(dim=1) / count[:, None]


def staged(model: MultiExitNet, x: torch.Tensor, newest: int) -> torch.Tensor:
    """Return logits_NKC of exits 0..newest, with graph for the newest alone; the earlier ones are in eval mode."""
    earlier = [*model.stages[:newest], *model.heads[:newest]]
    modes = [(module, module.training) for part in earlier for module in part.modules()]
    for part in earlier:
        part.eval()
    logits, features = [], x
    with torch.no_grad():
        for stage, head in zip(model.stages[:newest], model.heads[:newest], strict=True):
            features = stage(features)
            logits.append(head(features))
    for module, mode in modes:
        module.training = mode
    logits.append(model.heads[newest](model.stages[newest](features)))
    return torch.stack(logits, dim=1)
