"""Step rules: where an iterate moves, given the gradient. The loop projects the result."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from rdi.checks import number


class StepRule(Protocol):
    """x_adv, gradient and clean image (all NCHW) and the 0-based step -> the next x_adv, not yet projected."""

    def __call__(self, x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor, step: int) -> torch.Tensor: ...


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

    The loss is per sample, so the strength does not depend on the batch size (PAPER.md fault 9). The published
    form is unbounded in L-infinity: that is eps=1 here. penalty > 0.
    """

    penalty: float = 1.3

    def __post_init__(self) -> None:
        number("attack.rule.penalty", self.penalty, 0, math.inf, open_low=True)

    def __call__(self, x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor, step: int) -> torch.Tensor:
        """See StepRule."""
        return x_adv + (grad - self.penalty * (x_adv - x)) / math.sqrt(step + 2)
