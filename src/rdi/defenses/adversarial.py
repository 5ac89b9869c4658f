"""Hybrid adversarial training of all exits (Hu et al. 2020, section 3): main, average or max-average by its attack."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rdi.attacks.base import Attack
from rdi.attacks.engine import Engine
from rdi.checks import number
from rdi.defenses.base import Defense, Logs, accuracy_per_exit
from rdi.exits.net import MultiExitNet


class Adversarial(Defense):
    """(1 - adversarial_weight) * clean loss + adversarial_weight * loss on images crafted by `attack`.

    Images are crafted in eval mode (the official code crafts in training mode, where each attack step moves the
    BatchNorm statistics); two training passes follow, clean then adversarial, and only these move them.

    attack: crafts the training images, and judges the calibration split.
    adversarial_weight: in [0, 1], 0.5 as published.
    exit_weights, engine: as of Defense.
    Source: Hu et al., ICLR 2020, section 3.
    """

    def __init__(
        self,
        *,
        attack: Attack,
        adversarial_weight: float = 0.5,
        exit_weights: Sequence[float] | None = None,
        engine: Engine | None = None,
    ) -> None:
        super().__init__(exit_weights=exit_weights, engine=engine)
        self.attack: Attack = attack
        self.adversarial_weight = number("defense.adversarial_weight", adversarial_weight, 0, 1)

    def loss(
        self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, Logs]:
        """Return the hybrid loss, and loss and accuracy of both halves as logs."""
        x_adv = self.training_images(model, x, y, generator)
        clean, adversarial, y = self.gather(model(x)), self.gather(model(x_adv)), self.gather(y)
        clean_loss = self.weighted_loss(clean, y)
        adversarial_loss = self.weighted_loss(adversarial, y)
        loss = (1 - self.adversarial_weight) * clean_loss + self.adversarial_weight * adversarial_loss
        logs = {
            "loss": loss.detach(),
            "clean_loss": clean_loss.detach(),
            "adversarial_loss": adversarial_loss.detach(),
            "clean_accuracy": accuracy_per_exit(clean, y),
            "robust_accuracy": accuracy_per_exit(adversarial, y),
        }
        return loss, logs

    def images(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return both halves of what the network is trained on, one after the other."""
        return torch.cat([x, self.training_images(model, x, y, generator)])

    def training_images(
        self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Craft the adversarial part of the batch, x_adv_NCHW in [0, 1]."""
        return self.craft(self.attack, model, x, y, generator)
