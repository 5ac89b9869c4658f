"""The ensemble of exits under attack: PGD on the mean of the logits of the exits up to one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdi.attacks.gradient import ExitAttack
from rdi.attacks.objectives import OneExit, loss_named, share_fooled


@dataclass(frozen=True)
class MeanLogits:
    """Loss of the mean logits of the exits up to `exit` (0-based; -1 the last). loss: "ce" or "dlr"."""

    exit: int
    loss: str = "ce"

    def __post_init__(self) -> None:
        OneExit(self.exit, self.loss)

    def exits(self, total: int) -> list[int]:
        """Return all exits up to the chosen one. Raises UserError when the network has no such exit."""
        return list(range(OneExit(self.exit).exits(total)[0] + 1))

    def __call__(self, logits_NKC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
        """logits_NKC, y_N -> loss_N."""
        return loss_named(self.loss)(logits_NKC.mean(dim=1, keepdim=True), y_N)[:, 0]


@dataclass(kw_only=True)
class Ensemble(ExitAttack):
    """PGD on the mean logits of the exits up to `exit`: what the ensemble policy answers with there (its geometric
    mean of probabilities is the softmax of the mean logits).

    exit: 0-based; -1 the last; in a suite "each" runs all. The exits as one answer, right or wrong, choose the best
    iterate. Raises UserError for another exit.
    """

    exit: int | str = -1

    def objective_at(self, exit: int) -> MeanLogits:
        """Return the loss of the mean up to one exit."""
        return MeanLogits(exit, self.loss)

    def fooled(self, logits_NKC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
        """Return 1 for the samples on which the mean is wrong, else 0."""
        return share_fooled(logits_NKC.mean(dim=1, keepdim=True), y_N)
