"""One-step training images whose perturbation is carried from epoch to epoch, moved with the crop and the flip."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from rdi.attacks.norms import Ball
from rdi.attacks.objectives import cross_entropy
from rdi.attacks.slopes import input_gradient
from rdi.checks import LINF, NORMS, integer, number
from rdi.defenses.base import Origin
from rdi.defenses.crafting import Crafting
from rdi.defenses.terms import ADVERSARIAL, CARRIED
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet
from rdi.seeds import drawn

LEVELS = 127
"""A perturbation is stored as a whole number of eps / LEVELS."""


@dataclass(kw_only=True)
class Carried(Crafting):
    """One step from the perturbation that the same image had an epoch ago (FGSM-MEP, Jia et al., ECCV 2022).

    step: length of the step, in units of eps, > 0.
    momentum: share of the gradients of earlier epochs in the direction that the carried perturbation moves along,
        in [0, 1); the training image itself moves along the present gradient.
    reset: epochs after which all perturbations start anew from uniform noise, at least 1.

    Perturbations and momenta are kept in the frame of the stored image, as int8, so that they follow the image through
    crop and flip (ATAS, Huang et al. 2022, section 3.2; FGSM-MEP leaves them where they were).
    Raises UserError for values out of range.
    """

    gives: ClassVar[frozenset[str]] = frozenset({ADVERSARIAL, CARRIED})
    step: float = 1.0
    momentum: float = 0.3
    reset: int = 15
    _delta: torch.Tensor | None = field(default=None, init=False, repr=False)
    _momentum: torch.Tensor | None = field(default=None, init=False, repr=False)
    _period: int = field(default=-1, init=False, repr=False)

    def __post_init__(self) -> None:
        number("defense.crafting.step", self.step, 0, math.inf, open_low=True)
        if number("defense.crafting.momentum", self.momentum, 0, 1) == 1:
            raise UserError("defense.crafting.momentum must be below 1")
        integer("defense.crafting.reset", self.reset, 1)

    def one_step(self) -> Carried:
        """Return itself: one step against all exits is what it makes."""
        return self

    def check(self, ball: Ball) -> None:
        """Raise UserError for another norm than L-infinity."""
        if ball.norm != LINF:
            raise UserError(
                f"perturbations are carried in steps of eps / {LEVELS} a pixel, too coarse for {NORMS[ball.norm]}: "
                "choose another defense, as paired, or threat.norm=linf"
            )

    def state(self) -> dict[str, Any]:
        """Return what the next batch depends on."""
        return {"delta": self._delta, "momentum": self._momentum, "period": self._period}

    def load_state(self, state: dict[str, Any]) -> None:
        """Be as the one whose `state` this is; {} is the state before the first batch."""
        self._delta, self._momentum = state.get("delta"), state.get("momentum")
        self._period = state.get("period", -1)

    def __call__(
        self,
        net: MultiExitNet,
        x: torch.Tensor,
        y: torch.Tensor,
        ball: Ball,
        generator: torch.Generator,
        *,
        step: int = 0,
        origin: Origin | None = None,
    ) -> dict[str, torch.Tensor]:
        """Craft the training images, and the images at the carried perturbation; without `origin` that is noise."""
        del step
        eps = ball.eps
        unit = eps / LEVELS
        delta, before = self._carried(x, origin, generator)
        carried = ball.project(x + delta * unit, x)
        with torch.enable_grad():
            carried.requires_grad_(True)
            loss = cross_entropy(net(carried).float(), y).mean(dim=1)
            grad = input_gradient(loss.sum(), carried)
        carried = carried.detach()
        x_adv = ball.project(carried + (self.step * eps) * grad.sign(), x)
        if origin is not None and self._delta is not None and self._momentum is not None:
            # of the sum only its sign is used: every image is scaled to its largest entry
            mixed = scaled(scaled(grad) + self.momentum * before / LEVELS)
            onward = (carried - x + (self.step * eps) * mixed.sign()).clamp(-eps, eps)
            origin.store(self._delta, (onward / unit).round().to(torch.int8))
            origin.store(self._momentum, (mixed * LEVELS).round().to(torch.int8))
        return {ADVERSARIAL: x_adv, CARRIED: carried}

    def _carried(
        self, x: torch.Tensor, origin: Origin | None, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the perturbations and momenta of this batch, as they lie on x_NCHW, in units of 1 / LEVELS."""
        if origin is None:
            fresh = drawn(lambda shape: noise(torch.Size(shape), generator, x.device), x.shape, generator)
            return fresh.to(x), torch.zeros_like(x)
        period = origin.epoch // self.reset
        if self._delta is None or self._momentum is None or self._period != period:
            shape = torch.Size((origin.samples, *x.shape[1:]))
            self._delta = noise(shape, generator, x.device)
            self._momentum = torch.zeros(shape, dtype=torch.int8, device=x.device)
            self._period = period
        place = origin.placement.place
        return place(self._delta[origin.index]).to(x), place(self._momentum[origin.index]).to(x)


def noise(shape: torch.Size, generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Draw int8 perturbations of `shape`, uniform in [-LEVELS, LEVELS]."""
    return torch.randint(-LEVELS, LEVELS + 1, shape, generator=generator, device=device, dtype=torch.int8)


def scaled(gradient: torch.Tensor) -> torch.Tensor:
    """Scale every image of gradient_NCHW to a largest entry of 1."""
    return gradient / gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-30)
