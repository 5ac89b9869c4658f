"""Slowdown: make samples leave late, whatever is answered there, or (Joint) late and wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rdi.attacks.doubt import doubts
from rdi.attacks.looking import Seen
from rdi.attacks.objectives import wrong_margin
from rdi.attacks.policy import Aim, PolicyAttack, with_thresholds
from rdi.checks import number
from rdi.thresholds.policy import Policy, ThresholdPolicy


@dataclass(frozen=True)
class Late(Aim):
    """Minus the confidence to take away, summed over the exits up to the one taken; success: the exit reached."""

    policy: ThresholdPolicy
    slack: float

    def span(self, exits: int, progress: float) -> tuple[int, int]:
        """See Aim."""
        # who passes the last threshold ends at the last exit: no need to run it
        return 1, max(1, exits - 1)

    def loss(self, seen: Seen, y_N: torch.Tensor, progress: float) -> torch.Tensor:
        """See Aim."""
        return -self.haste(seen)

    def haste(self, seen: Seen) -> torch.Tensor:
        """What is missing to pass every exit up to the one taken, haste_N >= 0."""
        doubt = doubts(self.policy, seen.logits)
        passed = torch.arange(doubt.shape[1], device=doubt.device) <= seen.exit[:, None]
        return ((self.slack - doubt).relu() * passed).sum(dim=1)

    def success(self, seen: Seen, y_N: torch.Tensor) -> torch.Tensor:
        """See Aim: exit reached / (E - 1)."""
        return seen.exit / max(1, self.policy.exits - 1)


@dataclass(frozen=True)
class LateAndWrong(Late):
    """As Late, with the answer at the exit taken pushed towards a wrong class. weight: of the lateness."""

    weight: float
    lead: float

    def span(self, exits: int, progress: float) -> tuple[int, int]:
        """See Aim."""
        return 1, exits

    def loss(self, seen: Seen, y_N: torch.Tensor, progress: float) -> torch.Tensor:
        """See Aim."""
        lead = seen.at_exit(wrong_margin(seen.logits, y_N)).clamp(max=self.lead)
        return lead - self.weight * self.haste(seen)

    def success(self, seen: Seen, y_N: torch.Tensor) -> torch.Tensor:
        """See Aim: 0 where right, (exit + 1) / E where wrong."""
        return seen.wrong(y_N) * (seen.exit + 1) / self.policy.exits


@dataclass(kw_only=True)
class Slowdown(PolicyAttack):
    """Keep the sample in the network (DeepSloth, Hong et al., ICLR 2021, within the ball).

    Climbs the doubt at every exit up to the one taken; the best iterate is the one that gets furthest. slack: how
    far beyond a threshold a score is pushed, in the unit of `doubts`. Raises UserError for a negative one.
    """

    slack: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        number("attack.slack", self.slack, 0, math.inf)

    def aims(self, policy: Policy) -> Sequence[Aim]:
        """See PolicyAttack."""
        return [Late(with_thresholds(policy, "Slowdown"), self.slack)]


@dataclass(kw_only=True)
class Joint(Slowdown):
    """Wrong and slow. The best iterate is wrong under the policy, and among those the one that gets furthest.

    weight: of the lateness against the wrong answer; lead: how far above the true logit a wrong one is pushed.
    Raises UserError for negative values.
    """

    weight: float = 2.0
    lead: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("attack.weight", self.weight, 0, math.inf)
        number("attack.lead", self.lead, 0, math.inf)

    def aims(self, policy: Policy) -> Sequence[Aim]:
        """See PolicyAttack."""
        return [LateAndWrong(with_thresholds(policy, "Joint"), self.slack, self.weight, self.lead)]
