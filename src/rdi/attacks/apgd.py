"""APGD: PGD whose step size follows the progress of every sample, a rule for any objective."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from rdi.attacks.base import project
from rdi.attacks.steps import Walk
from rdi.checks import number
from rdi.exits.compact import take


@dataclass(frozen=True)
class APGD:
    """Auto-PGD (Croce and Hein, ICML 2020, Algorithm 1), L-infinity, with a step size per sample.

    It starts with steps of 2 * eps. At the checkpoints a sample's step is halved, and it goes back to its best point,
    if too few steps since the last checkpoint raised the loss, or if neither step size nor best loss changed since.

    rho: share of the steps between checkpoints that must raise the loss, in [0, 1].
    momentum: weight alpha in (0, 1] of the new step against the last movement.
    Raises UserError for values out of range.
    """

    rho: float = 0.75
    momentum: float = 0.75

    def __post_init__(self) -> None:
        number("attack.rule.rho", self.rho, 0, 1)
        number("attack.rule.momentum", self.momentum, 0, 1, open_low=True)

    def walk(self, x: torch.Tensor, eps: float, steps: int) -> Walk:
        """Begin an ascent of `steps` steps in the ball of radius `eps` around x_MCHW."""
        return _Walk(self, x, eps, checkpoints(steps))


def checkpoints(steps: int) -> list[int]:
    """Return the steps at which the step size is reconsidered, ascending: ceil(p_j * steps), p_j as published."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # 1e-9: 0.22 + 0.19 + ... must not step over a whole number by rounding
    return sorted({math.ceil(share * steps - 1e-9) for share in shares[1:] if share <= 1})


class _Walk:
    def __init__(self, rule: APGD, x: torch.Tensor, eps: float, checks: list[int]) -> None:
        self.rule, self.x, self.eps, self.checks = rule, x, eps, checks
        self.checked = 0  # the last checkpoint, as a step
        self.images: dict[str, torch.Tensor] = {}
        self.numbers: dict[str, torch.Tensor] = {}

    def step(self, x_adv: torch.Tensor, loss: torch.Tensor, grad: torch.Tensor, step: int) -> torch.Tensor:
        if step == 0:
            self.images = {"best": x_adv, "best_grad": grad, "before": x_adv}
            self.numbers = {
                "size": torch.full_like(loss, 2 * self.eps),
                "loss": loss,
                "best": loss,
                "rises": torch.zeros_like(loss),
                "checked_best": loss,
                "halved": torch.zeros_like(loss, dtype=torch.bool),
            }
            return project(x_adv + 2 * self.eps * grad.sign(), self.x, self.eps)
        self._observe(x_adv, loss, grad)
        if step in self.checks:
            x_adv, grad = self._check(x_adv, grad, step)
        size = self.numbers["size"][:, None, None, None]
        target = project(x_adv + size * grad.sign(), self.x, self.eps)
        alpha = self.rule.momentum
        moved = x_adv + alpha * (target - x_adv) + (1 - alpha) * (x_adv - self.images["before"])
        self.images["before"] = x_adv
        return project(moved, self.x, self.eps)

    def narrow(self, rows: torch.Tensor) -> None:
        self.x = take(self.x, rows)
        self.images = {name: take(image, rows) for name, image in self.images.items()}
        self.numbers = {name: value[rows] for name, value in self.numbers.items()}

    def _observe(self, x_adv: torch.Tensor, loss: torch.Tensor, grad: torch.Tensor) -> None:
        images, numbers = self.images, self.numbers
        numbers["rises"] = numbers["rises"] + (loss > numbers["loss"])
        numbers["loss"] = loss
        better = loss > numbers["best"]
        numbers["best"] = torch.where(better, loss, numbers["best"])
        images["best"] = _choose(better, x_adv, images["best"])
        images["best_grad"] = _choose(better, grad, images["best_grad"])

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


def _choose(where: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.where(where[:, None, None, None], first, second)
