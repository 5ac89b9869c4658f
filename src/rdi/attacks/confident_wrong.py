"""Confident and wrong: for each exit, leave there, not before, and with a wrong class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rdi.attacks.doubt import doubts
from rdi.attacks.looking import Seen
from rdi.attacks.objectives import wrong_margin
from rdi.attacks.policy import Aim, FoolingAim, FoolingAttack, with_thresholds
from rdi.checks import number
from rdi.thresholds.policy import Policy, ThresholdPolicy


@dataclass(frozen=True, kw_only=True)
class LeaveWrong(FoolingAim):
    """Minus what is missing to leave at `exit` with the likeliest wrong class: a sum of hinges, 0 when all is met."""

    policy: ThresholdPolicy
    exit: int
    slack: float
    lead: float

    def span(self, exits: int, progress: float) -> tuple[int, int]:
        """See Aim."""
        # nothing behind `exit` runs: who has not left by then is no success of this aim, whatever comes later
        return self.exit + 1, self.exit + 1

    def loss(self, seen: Seen, y_N: torch.Tensor, progress: float) -> torch.Tensor:
        """See Aim."""
        doubt = doubts(self.policy, seen.logits)
        missing = (self.lead - wrong_margin(seen.logits[:, self.exit :], y_N)[:, 0]).relu()
        missing = missing + (self.slack - doubt[:, : self.exit]).relu().sum(dim=1)
        if self.exit < doubt.shape[1]:
            missing = missing + (self.slack + doubt[:, self.exit]).relu()
        return -missing


@dataclass(kw_only=True)
class ConfidentWrong(FoolingAttack):
    """One aim per exit k: exit k wrong and sure enough to leave, all before it too unsure.

    Only the exits up to k run for aim k. slack: how far beyond a threshold a score is pushed, in the unit of
    `doubts`; lead: how far above the true logit a wrong one is. E starts per restart. Raises UserError for negative
    values.
    """

    slack: float = 0.3
    lead: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("attack.slack", self.slack, 0, math.inf)
        number("attack.lead", self.lead, 0, math.inf)

    def aims(self, policy: Policy) -> Sequence[Aim]:
        """See PolicyAttack."""
        thresholds = with_thresholds(policy, "ConfidentWrong")
        return [
            LeaveWrong(policy=thresholds, sure=self.sure, exit=k, slack=self.slack, lead=self.lead)
            for k in range(policy.exits)
        ]
