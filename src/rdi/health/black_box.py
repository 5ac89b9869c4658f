"""An attack without gradients must not find what those with gradients miss (Athalye et al., ICML 2018)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from rdi.attacks import Attack
from rdi.attacks.base import project
from rdi.attacks.looking import look
from rdi.attacks.objectives import wrong_margin
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet
from rdi.health.evaluation import Evaluation, Extent, percent
from rdi.health.paired import beats
from rdi.records import Check
from rdi.thresholds.policy import Policy

FIRST_SHARE = 0.3
HALVINGS = 6


@dataclass(kw_only=True)
class RandomSquares(Attack):
    """Random search in the manner of the Square attack (Andriushchenko et al., ECCV 2020), not its full schedule.

    Starts from vertical stripes of +-eps; every query repaints one square per image and keeps it where the wrong
    margin of the exit that the policy takes has grown. The side shrinks: the squares cover FIRST_SHARE of the image at
    first, halved HALVINGS times.
    """

    queries: int
    policy: Policy | None = None

    def for_policy(self, policy: Policy) -> Attack:
        """See Attack."""
        return replace(self, policy=policy)

    def run(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """See Attack. Raises UserError without a policy."""
        samples, channels, height, width = x.shape
        best = project(x + self.eps * _signs((samples, channels, 1, width), generator), x, self.eps)
        margin = self._margin(model, best, y)
        for query in range(self.queries - 1):
            share = FIRST_SHARE * 0.5 ** (HALVINGS * query // self.queries)
            side = max(1, min(height, width, round((share * height * width) ** 0.5)))
            top, left = (
                int(torch.randint(size - side + 1, (), generator=generator, device=x.device))
                for size in (height, width)
            )
            square = (..., slice(top, top + side), slice(left, left + side))
            tried = best.clone()
            tried[square] = x[square] + self.eps * _signs((samples, channels, 1, 1), generator)
            tried = project(tried, x, self.eps)
            found = self._margin(model, tried, y)
            better = found > margin
            best = torch.where(better[:, None, None, None], tried, best)
            margin = torch.where(better, found, margin)
        return best

    @torch.no_grad()
    def _margin(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.policy is None:
            raise UserError("RandomSquares attacks a network with its thresholds: bind them with for_policy(policy)")
        seen = look(model, self.policy, x, 1, model.exits)
        return seen.at_exit(wrong_margin(seen.logits, y))


def _signs(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return 2.0 * torch.randint(2, shape, generator=generator, device=generator.device) - 1


def black_box(of: Evaluation, extent: Extent) -> Check:
    """Random squares against the per-image worst of the static and the adaptive attacks."""
    white = of.adaptive_worst() & of.under(of.static).right
    black = of.under(RandomSquares(eps=of.main.eps, queries=extent.queries)).right
    missed = int((white & ~black).sum())
    return Check(
        name="black-box",
        passed=not beats(black, white),
        figure=f"accuracy {percent(black)} % after {extent.queries} queries, {percent(white)} % with gradients; "
        f"{missed} found by queries only",
        meaning="Blind search finds mistakes that gradients miss: the gradients are masked, and the robustness with "
        "them.",
    )
