"""Step rules: where an iterate moves, given the gradient. The loop projects the result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from rdi.attacks.norms import Ball
from rdi.checks import number
from rdi.exits.compact import take


class Walk(Protocol):
    """One ascent by a rule: what the rule remembers per sample lives here."""

    def step(self, x_adv: torch.Tensor, loss: torch.Tensor, grad: torch.Tensor, step: int) -> torch.Tensor:
        """Return the next x_adv_MCHW, not yet projected, after x_adv, its loss_M and gradient; step: 0-based."""

    def narrow(self, rows: torch.Tensor) -> None:
        """Go on with these rows (int64, ascending) only."""


@runtime_checkable
class StepRule(Protocol):
    """A rule by which an iterate moves. Rules hold settings only; `walk` begins an ascent."""

    def walk(self, x: torch.Tensor, ball: Ball, steps: int) -> Walk:
        """Begin an ascent of `steps` steps in the ball around x_MCHW."""


@dataclass(frozen=True)
class Sign:
    """PGD and FGSM: a step of one length along the steepest ascent (Madry et al., ICLR 2018).

    In an L-infinity ball that is the sign of the gradient; of the others see Ball.

    step_size: in the norm of the ball, pixel units, > 0; at most 1 in L-infinity.
    Raises UserError for another one.
    """

    step_size: float

    def __post_init__(self) -> None:
        number("attack.step_size", self.step_size, 0, math.inf, open_low=True)

    def walk(self, x: torch.Tensor, ball: Ball, steps: int) -> Walk:
        """Begin an ascent; nothing is remembered."""
        return _SignWalk(self, ball)


class _SignWalk:
    def __init__(self, rule: Sign, ball: Ball) -> None:
        self.rule, self.ball = rule, ball

    def step(self, x_adv: torch.Tensor, loss: torch.Tensor, grad: torch.Tensor, step: int) -> torch.Tensor:
        return self.ball.step(x_adv, grad, self.rule.step_size)

    def narrow(self, rows: torch.Tensor) -> None:
        del rows


@dataclass(frozen=True)
class Wasserstein:
    """WRM (Sinha et al., ICLR 2018): ascend loss - penalty/2 * |x_adv - x|^2 with step 1/sqrt(t+2).

    The loss is per sample, so the strength does not depend on the batch size (in the official code of Hu et al., ICLR
    2020, it does: a mean loss meets a summed penalty). The published form is unbounded in L-infinity: that is eps=1
    here.

    penalty: > 0.
    Raises UserError for another one.
    """

    penalty: float = 1.3

    def __post_init__(self) -> None:
        number("attack.rule.penalty", self.penalty, 0, math.inf, open_low=True)

    def walk(self, x: torch.Tensor, ball: Ball, steps: int) -> Walk:
        """Begin an ascent that remembers x_MCHW, which the penalty is measured from."""
        return _WassersteinWalk(self, x)


class _WassersteinWalk:
    def __init__(self, rule: Wasserstein, x: torch.Tensor) -> None:
        self.rule, self.x = rule, x

    def step(self, x_adv: torch.Tensor, loss: torch.Tensor, grad: torch.Tensor, step: int) -> torch.Tensor:
        return x_adv + (grad - self.rule.penalty * (x_adv - self.x)) / math.sqrt(step + 2)

    def narrow(self, rows: torch.Tensor) -> None:
        self.x = take(self.x, rows)
