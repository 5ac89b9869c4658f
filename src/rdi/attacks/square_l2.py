"""What the Square attack tries in an L2 ball: bumps that take their budget from another place of the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from rdi.attacks.norms import TINY, project

TILES = 5
"""Bumps across the image that the search starts from."""


def bump(height: int, width: int) -> torch.Tensor:
    """Return a rectangle of weights that fall off from its middle, float32 (Andriushchenko et al. 2020, eq. 2).

    height, width: in pixels; an empty one has no weights.
    """
    reach = max(height, width) // 2
    sums = torch.cat([torch.zeros(1), torch.arange(1, reach + 2).float().pow(-2).cumsum(dim=0)])
    rows, columns = ((torch.arange(side) - side // 2).abs() for side in (height, width))
    return sums[reach + 1] - sums[torch.maximum(rows[:, None], columns[None])]


def pattern(side: int) -> torch.Tensor:
    """Return a bump above one of the opposite sign, of L2 length 1; float32, `side` x `side` pixels."""
    upper = side // 2
    both = torch.cat([bump(upper, side), -bump(side - upper, side)])
    return both / both.norm()


def tiled(x: torch.Tensor, eps: float, signs: torch.Tensor, turned: torch.Tensor) -> torch.Tensor:
    """Return the images that the search starts from: patterns all over x_NCHW, scaled to length eps, in [0, 1].

    eps: pixel units.
    signs: of every pattern, +-1, _NCRR as `grid` says.
    turned: bool_N1RR, by a quarter turn.
    """
    height, width = x.shape[2:]
    side, rows, columns = grid(height, width)
    one = pattern(side).to(x)
    first, second = (tile.repeat(rows, columns) for tile in (one, one.T))

    def spread(value: torch.Tensor) -> torch.Tensor:
        return value.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)

    found = spread(signs) * torch.where(spread(turned), second, first)
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    found = F.pad(found, (left, width - columns * side - left, top, height - rows * side - top))
    return project(x + eps * found / _length(found, (1, 2, 3)), x, eps, "l2")


def grid(height: int, width: int) -> tuple[int, int, int]:
    """Return side in pixels, rows and columns of the patterns that an image is tiled with."""
    side = max(min(height, width) // TILES, 1)
    return side, height // side, width // side


@dataclass(frozen=True)
class Draw:
    """Where and how N images are changed.

    first, second: top left corners of the window that gets a pattern and of the one that pays for it, int64_N2.
    signs: +-1, _NC11.
    turned: bool_N111, the pattern by a quarter turn.
    """

    first: torch.Tensor
    second: torch.Tensor
    signs: torch.Tensor
    turned: torch.Tensor


def moved(best: torch.Tensor, x: torch.Tensor, eps: float, side: int, draw: Draw) -> torch.Tensor:
    """Move budget into one window per image of best_NCHW, and add a pattern there (the paper's Algorithm 3).

    What was in the window stays in it by its direction; in every channel it gets the length of both windows and an
    equal share of what the image has left up to eps.

    best: the best images so far, NCHW, in the ball around x_NCHW.
    eps: pixel units.
    side: of the windows, in pixels.
    """
    delta = best - x
    here, (row, column) = _window(draw.first, side, x)
    there, _ = _window(draw.second, side, x)
    one = pattern(side).to(x)
    row, column = row.clamp(0, side - 1), column.clamp(0, side - 1)
    upright, turned = (tile[row[:, :, None], column[:, None, :]][:, None] for tile in (one, one.T))
    inside = delta * here
    shape = (draw.signs * torch.where(draw.turned, turned, upright) + inside / _length(inside, (2, 3))) * here
    unused = (eps**2 - _length(delta, (1, 2, 3)).square()).clamp_min(0)
    reach = (_length(delta * (here | there), (2, 3)).square() + unused / x.shape[1]).sqrt()
    delta = torch.where(here, shape / _length(shape, (2, 3)) * reach, delta.masked_fill(there, 0))
    return project(x + delta, x, eps, "l2")


def _window(corner_N2: torch.Tensor, side: int, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return where the window is, bool_N1HW, and every row and column counted from its corner, _NH and _NW."""
    row, column = (
        torch.arange(size, device=x.device) - corner_N2[:, axis, None] for axis, size in enumerate(x.shape[2:])
    )
    rows, columns = ((place >= 0) & (place < side) for place in (row, column))
    return (rows[:, :, None] & columns[:, None, :])[:, None], (row, column)


def _length(values_NCHW: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    return values_NCHW.square().sum(dim=axes, keepdim=True).sqrt().clamp_min(TINY)
