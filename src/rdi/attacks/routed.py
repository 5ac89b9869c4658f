"""Routed: climb the loss of the exit that the policy takes, decided anew at every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rdi.attacks.looking import Seen
from rdi.attacks.objectives import loss_named
from rdi.attacks.policy import Aim, FoolingAim, FoolingAttack
from rdi.checks import number
from rdi.thresholds.policy import Policy


@dataclass(frozen=True, kw_only=True)
class TakenExit(FoolingAim):
    """Loss of the exit taken. first: the exit whose loss is climbed for the first `warmup` share of the steps."""

    loss_name: str
    first: int | None = None
    warmup: float = 0.0

    def span(self, exits: int, progress: float) -> tuple[int, int]:
        """See Aim."""
        warm = self.first is not None and progress < self.warmup
        return (self.first + 1 if warm and self.first is not None else 1), exits

    def loss(self, seen: Seen, y_N: torch.Tensor, progress: float) -> torch.Tensor:
        """See Aim."""
        loss_NE = loss_named(self.loss_name)(seen.logits, y_N)
        taken = seen.at_exit(loss_NE)
        if self.first is None or progress >= self.warmup:
            return taken
        slope = loss_NE[:, self.first]
        # the value stays that of the exit taken: iterates from before and after the warm-up are compared
        return taken.detach() + slope - slope.detach()


@dataclass(kw_only=True)
class Routed(FoolingAttack):
    """The decision-aware attack (official `ifgm_decision`): every step climbs the exit that is taken.

    No gradient goes through the decision. E + 1 starts per restart: one that is routed from the first step on, and
    for each exit one that climbs this exit for the first `warmup` (in [0, 1]) of its steps, so that the routes of
    all single-exit attacks are tried. loss: "ce" or "dlr". Raises UserError for values out of range.
    """

    warmup: float = 0.5
    loss: str = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        number("attack.warmup", self.warmup, 0, 1)
        loss_named(self.loss)

    def aims(self, policy: Policy) -> Sequence[Aim]:
        """See PolicyAttack."""
        routed = TakenExit(policy=policy, sure=self.sure, loss_name=self.loss)
        return [routed, *(replace(routed, first=k, warmup=self.warmup) for k in range(policy.exits))]
