"""Square: random search with squares, no gradient. Written here, as the published package is an optional extra."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from rdi.attacks import square_l2
from rdi.attacks.base import Attack
from rdi.attacks.norms import project
from rdi.attacks.objectives import wrong_margin
from rdi.attacks.views import ViewAttack
from rdi.checks import LINF, NORMS, integer, number
from rdi.exits.compact import take
from rdi.exits.net import MultiExitNet

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries, out of 10,000, after which the area of the squares is halved (Andriushchenko et al., appendix)."""


@dataclass(kw_only=True)
class Square(ViewAttack):
    """The Square Attack (Andriushchenko et al., ECCV 2020, L-infinity and L2), a gradient-free attack on one view.

    It raises the margin of the likeliest wrong logit at the exit that answers, by trying squares of +-eps per channel,
    or in L2 patterns that take their length from another square; one that does not raise it is dropped.

    queries: squares tried per image, after the image itself and a start: vertical stripes, or in L2 a tiling.
    share: area of the first squares, as a share of the image, in (0, 1]; 0.8 as in AutoAttack.
    sure: margin to stop, >= 0: a sample whose wrong logit exceeds the true one by more makes no more queries (the copy
        of the network that images are crafted on rounds otherwise).
    target, policy: as of ViewAttack.
    Raises UserError for values out of range.
    """

    queries: int = 1000
    share: float = 0.8
    sure: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("attack.queries", self.queries, 1)
        number("attack.share", self.share, 0, 1, open_low=True)
        number("attack.sure", self.sure, 0, math.inf)

    def unable(self) -> str | None:
        """Say that there are squares for L-infinity and L2 only."""
        if self.norm in (LINF, "l2"):
            return None
        return (
            f"this Square attack searches L-infinity and L2 balls only, the threat model is {NORMS[self.norm]}; the "
            "package's does others: attack=autoattack attack.attacks=[square]"
        )

    def brief(self) -> Attack:
        """Return the attack with one query."""
        return replace(self, queries=1)

    def side(self, query: int, height: int, width: int) -> int:
        """Return the side in pixels of the square that query `query` (0-based) tries, at least 1."""
        done = query / self.queries * 10_000
        area = self.share / 2 ** sum(done > at for at in HALVINGS)
        # the pattern of L2 has two halves, which the authors' code gives three pixels at least
        return min(max(round(math.sqrt(area * height * width)), 1 if self.norm == LINF else 3), height, width)

    @torch.no_grad()
    def run(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Craft x_adv_NCHW by random search on the view of the network."""
        view = self.view(model)

        def logit_margin(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return wrong_margin(view(images)[:, None], labels)[:, 0]

        def uniform(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=generator, device=x.device)

        search = (_Squares if self.norm == LINF else _Patterns)(self, x, uniform)
        result = best = x
        best_margin = logit_margin(x, y)
        rows = torch.arange(len(x), device=x.device)
        for query in range(-1, self.queries):
            on = (best_margin <= self.sure).nonzero()[:, 0]
            if len(on) < len(rows):
                result = result.index_copy(0, rows, best)
                rows, best, best_margin, x, y = rows[on], take(best, on), best_margin[on], take(x, on), y[on]
            if len(rows) == 0:
                return result
            tried = search.start(x, rows) if query < 0 else search.step(best, x, rows, query)
            new_margin = logit_margin(tried, y)
            better = new_margin > best_margin
            best = torch.where(better[:, None, None, None], tried, best)
            best_margin = torch.where(better, new_margin, best_margin)
        return result.index_copy(0, rows, best)


class _Squares:
    """What is tried in an L-infinity ball. Draws are for the whole batch: they must not depend on who has left it."""

    def __init__(self, attack: Square, x: torch.Tensor, uniform: Callable[..., torch.Tensor]) -> None:
        self.attack, self.uniform = attack, uniform
        self.count, self.channels, self.height, self.width = x.shape
        self.stripes = uniform(self.count, self.channels, 1, self.width).round() * 2 - 1

    def start(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        eps = self.attack.eps
        return project(x + eps * self.stripes[rows], x, eps)

    def step(self, best: torch.Tensor, x: torch.Tensor, rows: torch.Tensor, query: int) -> torch.Tensor:
        places = self.uniform(self.count, 2)[rows]
        signs = self.uniform(self.count, self.channels, 1, 1)[rows].round() * 2 - 1
        return squares(best, x, self.attack.eps, self.attack.side(query, self.height, self.width), places, signs)


class _Patterns:
    """What is tried in an L2 ball. Draws are for the whole batch, as of _Squares."""

    def __init__(self, attack: Square, x: torch.Tensor, uniform: Callable[..., torch.Tensor]) -> None:
        self.attack, self.uniform = attack, uniform
        self.count, self.channels, self.height, self.width = x.shape
        _, down, across = square_l2.grid(self.height, self.width)
        self.signs = uniform(self.count, self.channels, down, across).round() * 2 - 1
        self.turned = uniform(self.count, 1, down, across) < 0.5

    def start(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return square_l2.tiled(x, self.attack.eps, self.signs[rows], self.turned[rows])

    def step(self, best: torch.Tensor, x: torch.Tensor, rows: torch.Tensor, query: int) -> torch.Tensor:
        side = self.attack.side(query, self.height, self.width)
        free = x.new_tensor([self.height - side + 1, self.width - side + 1])
        first, second = ((self.uniform(self.count, 2)[rows] * free).long() for _ in range(2))
        signs = self.uniform(self.count, self.channels, 1, 1)[rows].round() * 2 - 1
        turned = self.uniform(self.count, 1, 1, 1)[rows] < 0.5
        draw = square_l2.Draw(first, second, signs, turned)
        return square_l2.moved(best, x, self.attack.eps, side, draw)


def squares(
    best: torch.Tensor, x: torch.Tensor, eps: float, side: int, places: torch.Tensor, signs: torch.Tensor
) -> torch.Tensor:
    """Set one square per image of best_NCHW to x + sign * eps, in [0, 1].

    best: the best images so far, NCHW.
    x: the images attacked, NCHW.
    eps: pixel units.
    side: of the squares, in pixels.
    places: _N2 in [0, 1), top left corner as a share of the corners there are.
    signs: _NC11, of +-1; where a square would change nothing it gets the opposite signs (the authors draw again).
    """
    height, width = x.shape[2:]
    free = places.new_tensor([height - side + 1, width - side + 1])
    top, left = (places * free).long().unbind(dim=1)
    row = torch.arange(height, device=x.device) - top[:, None]
    column = torch.arange(width, device=x.device) - left[:, None]
    inside = ((row >= 0) & (row < side))[:, None, :, None] & ((column >= 0) & (column < side))[:, None, None, :]
    same = ((project(x + eps * signs, x, eps) == best) | ~inside).flatten(1).all(dim=1)
    signs = torch.where(same[:, None, None, None], -signs, signs)
    return torch.where(inside, project(x + eps * signs, x, eps), best)
