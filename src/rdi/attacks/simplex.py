"""Weights that follow losses: one side of a min-max problem over the simplex."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from rdi.checks import choice, number

DIRECTIONS = ("hardest", "easiest")


@dataclass(frozen=True, kw_only=True)
class MinMaxWeights:
    """Move the weights of K losses on the simplex by one projected gradient step (Wang et al., NeurIPS 2021, eq. 8).

    w <- projection of w + rate * (+-loss_K - regulariser * (w - 1/K)), then mixed with the floor.

    rate: length of the step, > 0.
    regulariser: pull towards equal weights, >= 0; large: the mean of the losses, 0: all on one of them.
    floor: least weight of every loss, as a share of 1/K, in [0, 1].
    direction: "hardest", weight goes to the largest losses (the exit that falls first); "easiest", to the smallest (the
        exit that still resists).
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

    def moved(self, weights: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """Return the next weights_...K, of sum 1 over the last axis. losses: _...K, without graph."""
        count = weights.shape[-1]
        sign = 1.0 if self.direction == "hardest" else -1.0
        step = sign * losses - self.regulariser * (weights - 1 / count)
        return self.floor / count + (1 - self.floor) * simplex_projection(weights + self.rate * step)


def simplex_projection(values: torch.Tensor) -> torch.Tensor:
    """Return the nearest points to values_...K with entries >= 0 and sum 1 (Duchi et al., ICML 2008, figure 1)."""
    # the projection does not change, and large values do not swallow the 1
    values = values - values.amax(dim=-1, keepdim=True)
    ordered = values.sort(dim=-1, descending=True).values
    count = torch.arange(1, values.shape[-1] + 1, device=values.device, dtype=values.dtype)
    excess = (ordered.cumsum(-1) - 1) / count
    # those above their excess come first in the order
    last = (ordered > excess).sum(dim=-1, keepdim=True) - 1
    return (values - excess.gather(-1, last)).clamp_min(0)
