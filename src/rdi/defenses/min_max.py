"""Adversarial training against the worst mixture of attack types, whose weights follow the losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rdi.attacks.base import Attack
from rdi.attacks.engine import Engine
from rdi.attacks.simplex import MinMaxWeights
from rdi.checks import number
from rdi.defenses.base import Defense, Logs, accuracy_per_exit
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet


class MinMaxAttacks(Defense):
    """(1 - adversarial_weight) * clean loss + adversarial_weight * sum_k w_k loss on the images of attack k.

    The network descends and w ascends over the simplex, one step a batch (Wang et al., NeurIPS 2021, generalised
    adversarial training); the log says which attack is hard.

    attack: judges the held-out images.
    attacks: at least two, whose images are trained on.
    attack_weights: how w follows the losses, from 1/K.
    adversarial_weight: in [0, 1].
    exit_weights, engine: as of every defense.
    The images of all attacks pass the network as one batch, after the clean ones. Raises UserError for values out of
    range.
    """

    def __init__(
        self,
        *,
        attack: Attack,
        attacks: Sequence[Attack],
        attack_weights: MinMaxWeights,
        adversarial_weight: float = 0.5,
        exit_weights: Sequence[float] | None = None,
        engine: Engine | None = None,
    ) -> None:
        super().__init__(exit_weights=exit_weights, engine=engine)
        if len(attacks) < 2:
            raise UserError(f"defense.attacks must list at least two attacks, got {len(attacks)}")
        self.attack: Attack = attack
        self.attacks = list(attacks)
        self.attack_weights = attack_weights
        self.adversarial_weight = number("defense.adversarial_weight", adversarial_weight, 0, 1)
        self._weights: torch.Tensor | None = None

    def state(self) -> dict[str, Any]:
        """Return the weights of the attacks."""
        return {} if self._weights is None else {"weights": self._weights}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over the weights of the attacks. Raises ValueError for the state of another defense."""
        if state and (set(state) != {"weights"} or state["weights"].shape != (len(self.attacks),)):
            raise ValueError(f"MinMaxAttacks of {len(self.attacks)} attacks has no such state")
        self._weights = state.get("weights")

    def images(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return what the network is trained on: the clean images, and those of every attack."""
        return torch.cat([x, *(self.craft(attack, model, x, y, generator) for attack in self.attacks)])

    def loss(
        self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, Logs]:
        """Return the hybrid loss; as logs its halves, the weights of the attacks and who withstands all of them."""
        images = [self.craft(attack, model, x, y, generator) for attack in self.attacks]
        clean = self.gather(model(x))
        attacked = [self.gather(part) for part in model(torch.cat(images)).split(len(x))]
        y = self.gather(y)
        losses_K = torch.stack([self.weighted_loss(logits, y) for logits in attacked])
        weights = self._weights
        if weights is None:
            weights = torch.full_like(losses_K.detach(), 1 / len(losses_K))
        clean_loss, adversarial_loss = self.weighted_loss(clean, y), (weights * losses_K).sum()
        loss = (1 - self.adversarial_weight) * clean_loss + self.adversarial_weight * adversarial_loss
        # per exit, so that rate and regulariser mean the same for any number of exits
        means_K = losses_K.detach() / sum(self.checked_weights(model.exits))
        moved = self.attack_weights.moved(weights, self.parts.mean(means_K, self.share(len(x)).total))
        if self.parts.over():
            self._weights = moved
        right = torch.stack([logits.detach().argmax(dim=2) == y[:, None] for logits in attacked]).all(dim=0)
        logs = {
            "loss": loss.detach(),
            "clean_loss": clean_loss.detach(),
            "adversarial_loss": adversarial_loss.detach(),
            "attack_weights": moved,
            "clean_accuracy": accuracy_per_exit(clean, y),
            "robust_accuracy": right.float().mean(dim=0),
        }
        return loss, logs
