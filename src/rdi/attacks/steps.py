"""Step rules: where an iterate moves, given the gradient. The loop projects the result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from rdi.checks import number
from rdi.exits.compact import take


class StepRule(Protocol):
    """x_adv, gradient and clean image (all NCHW) and the 0-based step -> the next x_adv, not yet projected."""

    def __call__(self, x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor, step: int) -> torch.Tensor: ...


class Walk(Protocol):
    """One ascent of a rule that remembers: what it keeps per sample lives here."""

    def step(self, x_adv: torch.Tensor, loss: torch.Tensor, grad: torch.Tensor, step: int) -> torch.Tensor:
        """x_adv_MCHW, its loss_M and gradient, the 0-based step -> the next x_adv."""

    def narrow(self, rows: torch.Tensor) -> None:
        """Go on with these rows (int64, ascending) only."""


@runtime_checkable
class Remembering(Protocol):
    """A rule whose steps depend on those before."""

    def walk(self, x: torch.Tensor, eps: float, steps: int) -> Walk:
        """Begin an ascent of `steps` steps in the ball of radius `eps` around x_MCHW."""


class Memoryless:
    """A walk with a rule that needs nothing but the gradient."""

    def __init__(self, rule: StepRule, x: torch.Tensor) -> None:
        self.rule = rule
        self.x = x

    def step(self, x_adv: torch.Tensor, loss: torch.Tensor, grad: torch.Tensor, step: int) -> torch.Tensor:
        """See Walk."""
        return self.rule(x_adv, grad, self.x, step)

    def narrow(self, rows: torch.Tensor) -> None:
        """See Walk."""
        self.x = take(self.x, rows)


def begin(rule: StepRule | Remembering, x: torch.Tensor, eps: float, steps: int) -> Walk:
    """The walk of a rule of either kind."""
    return rule.walk(x, eps, steps) if isinstance(rule, Remembering) else Memoryless(rule, x)


@dataclass(frozen=True)
class Sign:
    """PGD and FGSM: `step_size` (pixel units, in (0, 1]) along the sign of the gradient (Madry et al. 2018)."""

    step_size: float

    def __post_init__(self) -> None:
        number("attack.step_size", self.step_size, 0, 1, open_low=True)

    def __call__(self, x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor, step: int) -> torch.Tensor:
        """See StepRule."""
        return x_adv.add(grad.sign_(), alpha=self.step_size)


@dataclass(frozen=True)
class Wasserstein:
    """WRM (Sinha et al., ICLR 2018): ascend loss - penalty/2 * |x_adv - x|^2 with step 1/sqrt(t+2).

    The loss is per sample, so the strength does not depend on the batch size (in the official code of Hu et al.,
    ICLR 2020, it does: a mean loss meets a summed penalty). The published form is unbounded in L-infinity: that is
    eps=1 here. penalty > 0.
    """

    penalty: float = 1.3

    def __post_init__(self) -> None:
        number("attack.rule.penalty", self.penalty, 0, math.inf, open_low=True)

    def __call__(self, x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor, step: int) -> torch.Tensor:
        """See StepRule."""
        return x_adv + (grad - self.penalty * (x_adv - x)) / math.sqrt(step + 2)
