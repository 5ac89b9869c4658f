"""Square: random search with squares, no gradient. Written here, as the published package is an optional extra."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

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
    """The Square Attack (Andriushchenko et al., ECCV 2020, L-infinity), a gradient-free attack on one view.

    It raises the margin of the likeliest wrong logit at the exit that answers, by trying squares of +-eps per channel;
    a square that does not raise it is dropped.

    queries: squares tried per image, after the image itself and vertical stripes.
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
        """Say that there are squares for L-infinity only."""
        if self.norm == LINF:
            return None
        return (
            f"this Square attack searches L-infinity balls only, the threat model is {NORMS[self.norm]}; the package's "
            "does others: attack=autoattack attack.attacks=[square]"
        )

    def brief(self) -> Attack:
        """Return the attack with one query."""
        return replace(self, queries=1)

    def side(self, query: int, height: int, width: int) -> int:
        """Return the side in pixels of the square that query `query` (0-based) tries, at least 1."""
        done = query / self.queries * 10_000
        area = self.share / 2 ** sum(done > at for at in HALVINGS)
        return min(max(round(math.sqrt(area * height * width)), 1), height, width)

    @torch.no_grad()
    def run(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Craft x_adv_NCHW by random search on the view of the network."""
        view = self.view(model)

        def logit_margin(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return wrong_margin(view(images)[:, None], labels)[:, 0]

        def uniform(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=generator, device=x.device)

        count, channels, height, width = x.shape
        stripes = uniform(count, channels, 1, width).round() * 2 - 1
        result = best = x
        best_margin = logit_margin(x, y)
        rows = torch.arange(count, device=x.device)
        for query in range(-1, self.queries):
            on = (best_margin <= self.sure).nonzero()[:, 0]
            if len(on) < len(rows):
                result = result.index_copy(0, rows, best)
                rows, best, best_margin, x, y = rows[on], take(best, on), best_margin[on], take(x, on), y[on]
            if len(rows) == 0:
                return result
            if query < 0:
                tried = project(x + self.eps * stripes[rows], x, self.eps)
            else:
                # for the whole batch: the draws must not depend on who has left it
                places, signs = uniform(count, 2)[rows], uniform(count, channels, 1, 1)[rows].round() * 2 - 1
                tried = squares(best, x, self.eps, self.side(query, height, width), places, signs)
            new_margin = logit_margin(tried, y)
            better = new_margin > best_margin
            best = torch.where(better[:, None, None, None], tried, best)
            best_margin = torch.where(better, new_margin, best_margin)
        return result.index_copy(0, rows, best)


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
