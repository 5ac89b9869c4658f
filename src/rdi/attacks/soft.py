"""Soft: climb through the exit decision, as a mixture of exits whose temperature falls to almost zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from rdi.attacks.doubt import doubts
from rdi.attacks.looking import Seen
from rdi.attacks.objectives import loss_named
from rdi.attacks.policy import Aim, FoolingAim, FoolingAttack, with_thresholds
from rdi.checks import number
from rdi.thresholds.policy import Policy, ThresholdPolicy
from rdi.thresholds.scores import log_probabilities


def log_shares(policy: ThresholdPolicy, logits_NEC: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log of the soft probability of leaving at each exit, log_share_NE; the shares sum to 1.

    share_k = sigmoid(-doubt_k / T) * product over j < k of sigmoid(doubt_j / T), and all that is left at the last.
    As T goes to 0 this is the policy's own decision.
    """
    scaled = doubts(policy, logits_NEC) / temperature
    last = scaled.new_zeros(len(scaled), 1)
    stayed = torch.cat([last, F.logsigmoid(scaled).cumsum(dim=1)], dim=1)
    return stayed + torch.cat([F.logsigmoid(-scaled), last], dim=1)


@dataclass(frozen=True, kw_only=True)
class Mixture(FoolingAim):
    """Loss of the mixture of all exits' predictions, weighted with the soft probability of leaving there."""

    policy: ThresholdPolicy
    loss_name: str
    hot: float
    cold: float

    def span(self, exits: int, progress: float) -> tuple[int, int]:
        """See Aim."""
        return exits, exits

    def loss(self, seen: Seen, y_N: torch.Tensor, progress: float) -> torch.Tensor:
        """See Aim."""
        temperature = self.hot * (self.cold / self.hot) ** progress
        shares = log_shares(self.policy, seen.logits, temperature)
        mixed = (shares[:, :, None] + log_probabilities(seen.logits)).logsumexp(dim=1, keepdim=True)
        return loss_named(self.loss_name)(mixed, y_N)[:, 0]


@dataclass(kw_only=True)
class Soft(FoolingAttack):
    """The exit decision made differentiable: -log of the mixture's probability of the true class.

    hot, cold: temperature at the first and after the last step, falling geometrically, in the unit of `doubts`
    (log-odds), which is the same for every score. loss: "ce" or "dlr" of the
    mixture. One start per restart. Raises UserError for values out of range, 0 < cold <= hot.
    """

    hot: float = 1.0
    cold: float = 0.03
    loss: str = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        number("attack.hot", self.hot, 0, math.inf, open_low=True)
        number("attack.cold", self.cold, 0, self.hot, open_low=True)
        loss_named(self.loss)

    def aims(self, policy: Policy) -> Sequence[Aim]:
        """See PolicyAttack."""
        thresholds = with_thresholds(policy, "Soft")
        return [Mixture(policy=thresholds, sure=self.sure, loss_name=self.loss, hot=self.hot, cold=self.cold)]
