"""Boxes: a lower and an upper bound of every element of a tensor, widened by the rounding of floating point."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdi.errors import UserError

DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Box:
    """All tensors between `low` and `high`.

    low, high: of one shape, low <= high.
    """

    low: torch.Tensor
    high: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensors."""
        return self.low.shape

    @property
    def largest(self) -> torch.Tensor:
        """Largest absolute value of every element."""
        return torch.maximum(self.low.abs(), self.high.abs())

    def wider(self, slack: torch.Tensor | float) -> Box:
        """Return the box with `slack` >= 0 added on both sides."""
        return Box(self.low - slack, self.high + slack)


def spread(terms: int, dtype: torch.dtype) -> float:
    """Bound the rounding error of a sum of `terms` products, relative to the sum of their absolute values.

    A sum of n products in floating point, in any order and with or without fused multiply-adds, is off by at most n u /
    (1 - n u), u being half the distance from 1 to the next number. Four times as much holds three such errors: of the
    middle, of the radius and of the network that runs on a point of the box; the 16 further terms hold the few
    operations around them.

    dtype: of the products.
    Raises UserError where there are so many terms that no bound is known.
    Source: Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1.
    """
    unit = torch.finfo(dtype).eps / 2
    if (terms + 16) * unit > 0.01:
        raise UserError(f"no bound for sums of {terms} products in {dtype}: their rounding alone has no useful bound")
    return 4 * (terms + 16) * unit * 1.02


def ball(x: torch.Tensor, eps: float) -> Box:
    """Return the box of images within `eps` of x_NCHW in the maximum norm, clipped to [0, 1].

    It is wider by two units in the last place, since attacks round x +- eps too.

    x: in [0, 1], float32 or float64.
    eps: pixel units.
    Raises UserError for other types.
    """
    if x.dtype not in DTYPES:
        raise UserError(f"certificates are for float32 and float64, not for {x.dtype}")
    slack = 2 * torch.finfo(x.dtype).eps if eps else 0.0
    return Box((x - (eps + slack)).clamp(0, 1), (x + (eps + slack)).clamp(0, 1))
