"""APGD: PGD whose step size follows the progress of every sample, a rule for any objective."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from rdi.attacks.norms import Ball, sparse_sign
from rdi.attacks.steps import Walk
from rdi.checks import number
from rdi.exits.compact import take


@dataclass(frozen=True)
class APGD:
    """Auto-PGD (Croce and Hein, ICML 2020, Algorithm 1), L-infinity and L2, with a step size per sample.

    It starts with steps of 2 * eps. At the checkpoints a sample's step is halved, and it goes back to its best point,
    if too few steps since the last checkpoint raised the loss, or if neither step size nor best loss changed since.

    In L1 it is the sparse one (Croce and Hein, ICML 2021, Algorithm 1), at one radius throughout: steps of eps along
    the largest 20 % of the gradient; then, every 4 % of the steps, the share of entries follows those that the best
    point has changed. rho and momentum mean nothing there.

    rho: share of the steps between checkpoints that must raise the loss, in [0, 1].
    momentum: weight alpha in (0, 1] of the new step against the last movement.
    Raises UserError for values out of range.
    """

    rho: float = 0.75
    momentum: float = 0.75

    def __post_init__(self) -> None:
        number("attack.rule.rho", self.rho, 0, 1)
        number("attack.rule.momentum", self.momentum, 0, 1, open_low=True)

    def walk(self, x: torch.Tensor, ball: Ball, steps: int) -> Walk:
        """Begin an ascent of `steps` steps in the ball around x_MCHW."""
        return _SparseWalk(x, ball, steps) if ball.norm == "l1" else _Walk(self, x, ball, checkpoints(steps))


def checkpoints(steps: int) -> list[int]:
    """Return the steps at which the step size is reconsidered, ascending: ceil(p_j * steps), p_j as published."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # 1e-9: 0.22 + 0.19 + ... must not step over a whole number by rounding
    return sorted({math.ceil(share * steps - 1e-9) for share in shares[1:] if share <= 1})


class _Remembering:
    """What an ascent remembers of every sample: images and numbers by name, "best" of both its best point so far."""

    def __init__(self, x: torch.Tensor, ball: Ball) -> None:
        self.x, self.ball = x, ball
        self.images: dict[str, torch.Tensor] = {}
        self.numbers: dict[str, torch.Tensor] = {}

    def keep(self, x_adv: torch.Tensor, loss: torch.Tensor, grad: torch.Tensor) -> None:
        better = loss > self.numbers["best"]
        self.numbers["best"] = torch.where(better, loss, self.numbers["best"])
        self.images["best"] = _choose(better, x_adv, self.images["best"])
        self.images["best_grad"] = _choose(better, grad, self.images["best_grad"])

    def narrow(self, rows: torch.Tensor) -> None:
        self.x = take(self.x, rows)
        self.images = {name: take(image, rows) for name, image in self.images.items()}
        self.numbers = {name: value[rows] for name, value in self.numbers.items()}


class _Walk(_Remembering):
    def __init__(self, rule: APGD, x: torch.Tensor, ball: Ball, checks: list[int]) -> None:
        super().__init__(x, ball)
        self.rule, self.checks = rule, checks
        self.checked = 0  # the last checkpoint, as a step

    def step(self, x_adv: torch.Tensor, loss: torch.Tensor, grad: torch.Tensor, step: int) -> torch.Tensor:
        if step == 0:
            self.images = {"best": x_adv, "best_grad": grad, "before": x_adv}
            self.numbers = {
                "size": torch.full_like(loss, 2 * self.ball.eps),
                "loss": loss,
                "best": loss,
                "rises": torch.zeros_like(loss),
                "checked_best": loss,
                "halved": torch.zeros_like(loss, dtype=torch.bool),
            }
            return self.ball.project(x_adv + 2 * self.ball.eps * self.ball.steepest(grad, x_adv), self.x)
        self.numbers["rises"] = self.numbers["rises"] + (loss > self.numbers["loss"])
        self.numbers["loss"] = loss
        self.keep(x_adv, loss, grad)
        if step in self.checks:
            x_adv, grad = self._check(x_adv, grad, step)
        size = self.numbers["size"][:, None, None, None]
        target = self.ball.project(x_adv + size * self.ball.steepest(grad, x_adv), self.x)
        alpha = self.rule.momentum
        moved = x_adv + alpha * (target - x_adv) + (1 - alpha) * (x_adv - self.images["before"])
        self.images["before"] = x_adv
        return self.ball.project(moved, self.x)

    def _check(self, x_adv: torch.Tensor, grad: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Halve where there was too little progress; x_adv and gradient to go on from."""
        images, numbers = self.images, self.numbers
        few = numbers["rises"] < self.rule.rho * (step - self.checked)
        stuck = ~numbers["halved"] & (numbers["best"] <= numbers["checked_best"])
        halve = few | stuck
        # before the samples go back: the momentum that follows is that of Algorithm 1, from the last iterate
        numbers["size"] = torch.where(halve, numbers["size"] / 2, numbers["size"])
        numbers["loss"] = torch.where(halve, numbers["best"], numbers["loss"])
        numbers["rises"] = torch.zeros_like(numbers["rises"])
        numbers["checked_best"] = numbers["best"]
        numbers["halved"] = halve
        self.checked = step
        return _choose(halve, images["best"], x_adv), _choose(halve, images["best_grad"], grad)


FIRST_SHARE = 0.2
"""Share of the entries that the first L1 steps move."""
SPARSER = 1.5
"""The share of the next steps is that of the changed entries divided by this; so does a step shrink."""
SETTLED = 0.95
"""Ratio of changed entries, now to before, from which on steps shrink; below it they begin anew from the best point."""
SHORTEST = 10
"""Steps never get shorter than eps divided by this."""


class _SparseWalk(_Remembering):
    def __init__(self, x: torch.Tensor, ball: Ball, steps: int) -> None:
        super().__init__(x, ball)
        self.every = max(int(0.04 * steps), 1)

    def step(self, x_adv: torch.Tensor, loss: torch.Tensor, grad: torch.Tensor, step: int) -> torch.Tensor:
        images, numbers = self.images, self.numbers
        if step == 0:
            self.images = images = {"best": x_adv, "best_grad": grad}
            self.numbers = numbers = {
                "size": torch.full_like(loss, self.ball.eps),
                "share": torch.full_like(loss, FIRST_SHARE),
                "changed": torch.full_like(loss, float(x_adv[0].numel())),
                "best": loss,
            }
        self.keep(x_adv, loss, grad)
        if step and step % self.every == 0:
            changed = (images["best"] != self.x).flatten(1).sum(dim=1).to(loss)
            sparser = changed < SETTLED * numbers["changed"]
            shorter = (numbers["size"] / SPARSER).clamp_min(self.ball.eps / SHORTEST)
            numbers["size"] = torch.where(sparser, self.ball.eps, shorter)
            numbers["share"], numbers["changed"] = changed / x_adv[0].numel() / SPARSER, changed
            x_adv = _choose(sparser, images["best"], x_adv)
            grad = _choose(sparser, images["best_grad"], grad)
        size = numbers["size"][:, None, None, None]
        return self.ball.project(x_adv + size * sparse_sign(grad, x_adv, numbers["share"]), self.x)


def _choose(where: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.where(where[:, None, None, None], first, second)
