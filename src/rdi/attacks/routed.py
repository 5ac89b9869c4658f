"""Routed: climb the loss of the exit that the policy takes, decided anew at every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdi.attacks.early_exit import ExitTrace
from rdi.attacks.objectives import loss_named
from rdi.attacks.policy import FoolingAttack
from rdi.checks import number


@dataclass(kw_only=True)
class Routed(FoolingAttack):
    """The decision-aware attack (official `ifgm_decision`): every step climbs the loss of the exit that is taken.

    No gradient goes through the decision. E + 1 ascents per restart: one that is routed from the first step on, and for
    each exit one that climbs this exit first, so that the routes of all single-exit attacks are tried.

    warmup: share of the steps, in [0, 1], on one exit's loss before routing.
    loss: of an exit, "ce" or "dlr".
    Raises UserError for values out of range.
    Source: code of Hu et al., ICLR 2020.
    """

    warmup: float = 0.5
    loss: str = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        number("attack.warmup", self.warmup, 0, 1)
        loss_named(self.loss)

    def ascents(self, exits: int) -> int:
        """Return E + 1: ascent 0 is routed throughout, ascent k + 1 climbs exit k first."""
        return exits + 1

    def span(self, exits: int, ascent: int, progress: float) -> tuple[int, int]:
        """Return (1, E), and while ascent k + 1 warms up at least the exits up to k."""
        return (max(1, ascent) if progress < self.warmup else 1), exits

    def ascent_loss(self, trace: ExitTrace, y_N: torch.Tensor, ascent: int, progress: float) -> torch.Tensor:
        """Return the loss_N of the exit taken; its gradient is that of exit k while ascent k + 1 warms up."""
        loss_NE = loss_named(self.loss)(trace.logits, y_N)
        taken = trace.at_exit(loss_NE)
        if ascent == 0 or progress >= self.warmup:
            return taken
        slope = loss_NE[:, ascent - 1]
        # the value stays that of the exit taken: iterates from before and after the warm-up are compared
        return taken.detach() + slope - slope.detach()
