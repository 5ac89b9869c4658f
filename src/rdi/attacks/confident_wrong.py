"""Confident and wrong: for each exit, craft an image that leaves there, not before, and with a wrong class."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from rdi.attacks.early_exit import ExitTrace
from rdi.attacks.log_odds import exit_log_odds
from rdi.attacks.objectives import wrong_margin
from rdi.attacks.policy import FoolingAttack
from rdi.checks import number


@dataclass(kw_only=True)
class ConfidentWrong(FoolingAttack):
    """One ascent per exit k: exit k wrong and confident enough to leave, all exits before it not.

    It climbs minus the sum of the hinges of these conditions, 0 when all are met. Only the exits up to k run in ascent
    k.

    slack: threshold margin, >= 0, in log-odds: how far beyond its threshold a score is pushed.
    lead: logit margin, >= 0: how far above the true logit a wrong one is pushed.
    Raises UserError for negative values.
    """

    slack: float = 0.3
    lead: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("attack.slack", self.slack, 0, math.inf)
        number("attack.lead", self.lead, 0, math.inf)

    def ascents(self, exits: int) -> int:
        """Return E: ascent k is for exit k."""
        return exits

    def span(self, exits: int, ascent: int, progress: float) -> tuple[int, int]:
        """Return the exits up to `ascent`: a sample that has not left by then is no success of it."""
        return ascent + 1, ascent + 1

    def ascent_loss(self, trace: ExitTrace, y_N: torch.Tensor, ascent: int, progress: float) -> torch.Tensor:
        """Return minus the sum of the hinges, loss_N <= 0."""
        return self.hinges(trace, wrong_margin(trace.logits[:, ascent:], y_N)[:, 0], ascent)

    def hinges(self, trace: ExitTrace, margin_N: torch.Tensor, exit: int) -> torch.Tensor:
        """Return minus what is missing for every sample to leave at `exit`, not before, and wrong, loss_N <= 0.

        margin_N: of a wrong logit above the true one, at that exit.
        """
        log_odds = exit_log_odds(self.thresholds(), trace.logits)
        missing = (self.lead - margin_N).relu() + (self.slack - log_odds[:, :exit]).relu().sum(dim=1)
        if exit < log_odds.shape[1]:
            missing = missing + (self.slack + log_odds[:, exit]).relu()
        return -missing
