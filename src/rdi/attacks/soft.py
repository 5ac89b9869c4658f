"""Soft: climb through the exit decision, as a mixture of exits whose temperature falls to almost zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from rdi.attacks.early_exit import ExitTrace
from rdi.attacks.log_odds import exit_log_odds
from rdi.attacks.objectives import loss_named
from rdi.attacks.policy import FoolingAttack
from rdi.checks import number
from rdi.thresholds.policy import ThresholdPolicy
from rdi.thresholds.scores import log_probabilities


def log_shares(policy: ThresholdPolicy, logits_NEC: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return log_share_NE, the log of the soft probability of leaving at each exit; the shares sum to 1.

    With the log-odds o_k of staying at exit k (`exit_log_odds`): share_k = sigmoid(-o_k / T) * product over j < k of
    sigmoid(o_j / T), and all that is left at the last exit. As T goes to 0 this is the policy's own decision.
    """
    scaled = exit_log_odds(policy, logits_NEC) / temperature
    last = scaled.new_zeros(len(scaled), 1)
    stayed = torch.cat([last, F.logsigmoid(scaled).cumsum(dim=1)], dim=1)
    return stayed + torch.cat([F.logsigmoid(-scaled), last], dim=1)


@dataclass(kw_only=True)
class Soft(FoolingAttack):
    """The exit decision made differentiable: -log of the probability that a mixture of the exits gives the true class.

    Each exit is weighted with the soft probability of leaving there (`log_shares`). One ascent per restart.
    hot, cold: temperature at the first and after the last step, in log-odds, falling geometrically; 0 < cold <= hot.
    loss: "ce" or "dlr" of the mixture.
    Raises UserError for values out of range.
    """

    hot: float = 1.0
    cold: float = 0.03
    loss: str = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        number("attack.hot", self.hot, 0, math.inf, open_low=True)
        number("attack.cold", self.cold, 0, self.hot, open_low=True)
        loss_named(self.loss)

    def span(self, exits: int, ascent: int, progress: float) -> tuple[int, int]:
        """Return all exits: every one has a share."""
        return exits, exits

    def ascent_loss(self, trace: ExitTrace, y_N: torch.Tensor, ascent: int, progress: float) -> torch.Tensor:
        """Return the loss_N of the mixture at the temperature of `progress`."""
        temperature = self.hot * (self.cold / self.hot) ** progress
        shares = log_shares(self.thresholds(), trace.logits, temperature)
        mixed = (shares[:, :, None] + log_probabilities(trace.logits)).logsumexp(dim=1, keepdim=True)
        return loss_named(self.loss)(mixed, y_N)[:, 0]
