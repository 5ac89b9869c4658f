"""Boxes: a lower and an upper bound of every value of a tensor, widened for what floating point may do to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdi.errors import UserError

DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Box:
    """All tensors between `low` and `high`, of one shape; elementwise low <= high."""

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
        """The box with `slack` >= 0 more to both sides."""
        return Box(self.low - slack, self.high + slack)


def spread(terms: int, dtype: torch.dtype) -> float:
    """How far sums of `terms` products may be off, as a share of the sum of the products' absolute values.

    A sum of n products in floating point, in any order and with or without fused multiply-adds, is off by at most
    n u / (1 - n u) of that (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1), u being half
    the distance of 1 to the next number. Four times as much holds three such errors: of the middle, of the radius and
    of the network that runs on a point of the box; the 16 further terms hold the few operations around them.
    Raises UserError where there are so many terms that nothing is known.
    """
    unit = torch.finfo(dtype).eps / 2
    if (terms + 16) * unit > 0.01:
        raise UserError(f"no bound for sums of {terms} products in {dtype}: their rounding alone has no useful bound")
    return 4 * (terms + 16) * unit * 1.02


def ball(x: torch.Tensor, eps: float) -> Box:
    """Box of the images within `eps` of x_NCHW in the maximum norm, in [0, 1]; x in [0, 1], float32 or float64.

    Two units in the last place wider than that, since attacks round x +- eps too.

    Raises UserError for other types."""
    if x.dtype not in DTYPES:
        raise UserError(f"certificates are for float32 and float64, not for {x.dtype}")
    slack = 2 * torch.finfo(x.dtype).eps if eps else 0.0
    return Box((x - (eps + slack)).clamp(0, 1), (x + (eps + slack)).clamp(0, 1))
