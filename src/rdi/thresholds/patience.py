"""Patience: leave when the answer has stopped changing (Zhou et al., "BERT loses patience", NeurIPS 2020)."""

from __future__ import annotations

import torch

from rdi.checks import integer
from rdi.errors import UserError
from rdi.records import Costs
from rdi.thresholds.calibration import Calibration
from rdi.thresholds.policy import Policy
from rdi.thresholds.rules import Rule


class PatiencePolicy(Policy):
    """Leave at the first exit that predicts the same class as each of the `patience` exits before it.

    It needs no score, hence has no values.

    exits: E.
    patience: in [1, E-2]; exit `patience` is the first that can let a sample leave.
    Raises UserError for another patience.
    """

    def __init__(self, exits: int, patience: int) -> None:
        self.exits = exits
        if exits < 3:
            raise UserError(f"patience compares exits, and this network has {exits}: use threshold=entropy")
        self.patience = integer("threshold.patience", patience, 1, exits - 2)

    def leaves(self, logits_NKC: torch.Tensor) -> torch.Tensor:
        """Return leaves_N: the last `patience` + 1 exits give the same class."""
        if logits_NKC.shape[1] <= self.patience:
            return logits_NKC.new_zeros(len(logits_NKC), dtype=torch.bool)
        recent = logits_NKC[:, -self.patience - 1 :].argmax(dim=2)
        return (recent == recent[:, :1]).all(dim=1)

    def __str__(self) -> str:
        """Say in words what the policy does."""
        return f"leaves when {self.patience + 1} exits in a row agree"


class PatienceRule(Rule):
    """A rule without fitting: the policy follows from the number of exits.

    patience: as of PatiencePolicy.
    """

    def __init__(self, *, patience: int) -> None:
        self.patience = integer("threshold.patience", patience, 1)

    def check(self, exits: int, costs: Costs) -> None:
        """Raise UserError for a patience that no exit can satisfy."""
        PatiencePolicy(exits, self.patience)

    def fit(self, calibration: Calibration) -> PatiencePolicy:
        """Return the policy; nothing is fitted."""
        return PatiencePolicy(calibration.logits.shape[1], self.patience)
