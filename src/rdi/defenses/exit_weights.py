"""Weights of exits that follow their losses: a min-max problem over the simplex."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from rdi.checks import choice, number

DIRECTIONS = ("hardest", "easiest")


@dataclass(frozen=True, kw_only=True)
class MinMaxWeights:
    """Move the weights on the simplex by one projected gradient step per batch (Wang et al., NeurIPS 2021, eq. 8).

    w <- projection of w + rate * (+-loss_E - regulariser * (w - 1/E)), then mixed with the floor.

    rate: length of the step, > 0.
    regulariser: pull towards equal weights, >= 0; large: the mean of exits, 0: all on one exit.
    floor: least weight of every exit, as a share of 1/E, in [0, 1].
    direction: "hardest", weight goes to the exits of the largest loss (the exit that falls first); "easiest", to those
        of the smallest (the exit that still resists).
    Raises UserError for values out of range.
    """

    rate: float = 0.02
    regulariser: float = 4.0
    floor: float = 0.15
    direction: str = "hardest"

    def __post_init__(self) -> None:
        number("exit_weights.rate", self.rate, 0, math.inf, open_low=True)
        number("exit_weights.regulariser", self.regulariser, 0, math.inf)
        number("exit_weights.floor", self.floor, 0, 1)
        choice("exit_weights.direction", self.direction, DIRECTIONS)

    def moved(self, weights_E: torch.Tensor, losses_E: torch.Tensor) -> torch.Tensor:
        """Return the next weights_E of sum 1.

        losses_E: of the batch, without graph."""
        exits = len(weights_E)
        sign = 1.0 if self.direction == "hardest" else -1.0
        step = sign * losses_E - self.regulariser * (weights_E - 1 / exits)
        return self.floor / exits + (1 - self.floor) * simplex_projection(weights_E + self.rate * step)


def simplex_projection(values: torch.Tensor) -> torch.Tensor:
    """Return the nearest point to values_E with entries >= 0 and sum 1 (Duchi et al., ICML 2008, figure 1)."""
    values = values - values.max()  # the projection does not change, and large values do not swallow the 1
    ordered = values.sort(descending=True).values
    count = torch.arange(1, len(values) + 1, device=values.device, dtype=values.dtype)
    excess = (ordered.cumsum(0) - 1) / count
    last = int((ordered > excess).nonzero().max())
    return (values - excess[last]).clamp_min(0)
