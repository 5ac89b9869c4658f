"""Slowdown: make samples leave late, whatever is answered there, or (Joint) late and wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from rdi.attacks.early_exit import ExitTrace
from rdi.attacks.log_odds import exit_log_odds
from rdi.attacks.objectives import wrong_margin
from rdi.attacks.policy import PolicyAttack, PolicyJudge
from rdi.checks import number
from rdi.exits.net import MultiExitNet


@dataclass(kw_only=True)
class Slowdown(PolicyAttack):
    """Keep the sample in the network: the best iterate is the one that gets furthest.

    Climbs minus the shortfall, summed over the exits up to the one taken. One ascent per restart.
    Of a network with gates the costliest iterate is the best, and the share of the MACs that is left out, by early exit
    and by gates, is part of the shortfall: its gradient opens gates (straight-through).

    slack: threshold margin, >= 0, in log-odds: how far beyond its threshold a score is pushed.
    Raises UserError for a negative one.
    Source: DeepSloth, Hong et al., ICLR 2021, here within the ball.
    """

    slack: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        number("attack.slack", self.slack, 0, math.inf)

    def span(self, exits: int, ascent: int, progress: float) -> tuple[int, int]:
        """Return (1, E - 1): who passes the last threshold ends at the last exit, which need not run."""
        return 1, max(1, exits - 1)

    def ascent_loss(self, trace: ExitTrace, y_N: torch.Tensor, ascent: int, progress: float) -> torch.Tensor:
        """Return minus the shortfall, loss_N <= 0."""
        return -self.shortfall(trace)

    def shortfall(self, trace: ExitTrace) -> torch.Tensor:
        """Return shortfall_N >= 0: log-odds missing to pass every exit up to the one taken by `slack`.

        With gates, plus the share of the MACs that is left out.
        """
        log_odds = exit_log_odds(self.thresholds(), trace.logits)
        passed = torch.arange(log_odds.shape[1], device=log_odds.device) <= trace.exit[:, None]
        missing = ((self.slack - log_odds).relu() * passed).sum(dim=1)
        return missing if trace.cost is None else missing + 1 - trace.cost

    def success(self, trace: ExitTrace, y_N: torch.Tensor) -> torch.Tensor:
        """Return success_N: exit taken / (E - 1); of a network with gates, the share of its MACs."""
        if trace.cost is not None:
            return trace.cost.detach()
        return trace.exit / max(1, self.thresholds().exits - 1)

    def judge(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, ascent: int) -> PolicyJudge:
        """Return the judge of one ascent; of a network with gates one that runs every exit, whose gates cost."""
        return _ToTheEnd(model, self, ascent, y) if model.gated else super().judge(model, x, y, ascent)


class _ToTheEnd(PolicyJudge):
    """Runs the last exit, too, where an image gets that far."""

    def span(self, progress: float) -> tuple[int, int]:
        return 1, self.model.exits


@dataclass(kw_only=True)
class Joint(Slowdown):
    """Wrong and slow: the best iterate is wrong under the policy, and among those the one that gets furthest.

    weight: of the shortfall against the wrong answer, >= 0.
    lead: logit margin, >= 0: how far above the true logit a wrong one is pushed.
    Raises UserError for negative values.
    """

    weight: float = 2.0
    lead: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("attack.weight", self.weight, 0, math.inf)
        number("attack.lead", self.lead, 0, math.inf)

    def span(self, exits: int, ascent: int, progress: float) -> tuple[int, int]:
        """Return (1, E): the answer of the last exit counts."""
        return 1, exits

    def ascent_loss(self, trace: ExitTrace, y_N: torch.Tensor, ascent: int, progress: float) -> torch.Tensor:
        """Return loss_N: the margin of the wrong answer at the exit taken, up to `lead`, minus weighted shortfall."""
        margin = trace.at_exit(wrong_margin(trace.logits, y_N)).clamp(max=self.lead)
        return margin - self.weight * self.shortfall(trace)

    def success(self, trace: ExitTrace, y_N: torch.Tensor) -> torch.Tensor:
        """Return success_N: 0 where right; where wrong (exit taken + 1) / E, or with gates the share of the MACs."""
        reached = (trace.exit + 1) / self.thresholds().exits if trace.cost is None else trace.cost.detach()
        return trace.wrong(y_N) * reached
