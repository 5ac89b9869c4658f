"""Training images of one or a few gradient-sign steps (FGSM, PGD) from a random start, cheap enough for every batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rdi.attacks.norms import Ball
from rdi.attacks.objectives import cross_entropy
from rdi.attacks.slopes import input_gradient
from rdi.checks import LINF, choice, integer, number
from rdi.defenses.base import Origin
from rdi.defenses.crafting import Crafting
from rdi.defenses.terms import ADVERSARIAL, distance
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet
from rdi.seeds import drawn

STARTS = ("uniform", "sign")
OBJECTIVES = ("cross_entropy", "kl", "squared")
EXITS = ("mean", "random")


@dataclass(frozen=True, kw_only=True)
class GradientSign(Crafting):
    """Step along the sign of the gradient, once or a few times, from a random start.

    In an L2 or L1 ball, along its steepest ascent (rdi.attacks.Ball).

    start: "uniform" noise, or "sign": every value at one of the two ends (NuAT).
    start_size: length of the noise, at most, in units of eps: in L-infinity its half width.
    step: length of one step, in units of eps.
    steps: how many, at least 1.
    projected: whether the start and the result are brought back into the eps ball.
    objectives: what the steps climb, one after the other by batch: "cross_entropy" of the labels, or a distance to
        the clean logits, "kl" or "squared", added to it.
    exits: "mean", every image climbs the mean over all exits; or "random", each the loss of one exit, drawn anew for
        every image of a batch, so that the network meets attacks on every single exit at the price of one.

    FGSM-RS (Wong et al., ICLR 2020) is (uniform, 1, 1.25, projected); N-FGSM (de Jorge et al., NeurIPS 2022) is
    (uniform, 2, 1, not projected); NuAT (Sriramanan et al., NeurIPS 2021) is (sign, 0.5, 1, projected) with alternating
    objectives; the second of them adds the nuclear norm there, and "squared" here, which needs no whole batch.

    Raises UserError for values out of range.
    """

    start: str = "uniform"
    start_size: float = 1.0
    step: float = 1.25
    steps: int = 1
    projected: bool = True
    objectives: Sequence[str] = ("cross_entropy",)
    exits: str = "mean"

    def __post_init__(self) -> None:
        choice("defense.crafting.start", self.start, STARTS)
        number("defense.crafting.start_size", self.start_size, 0, math.inf)
        number("defense.crafting.step", self.step, 0, math.inf, open_low=True)
        integer("defense.crafting.steps", self.steps, 1)
        if not self.objectives:
            raise UserError(f"defense.crafting.objectives must name at least one of {', '.join(OBJECTIVES)}")
        for objective in self.objectives:
            choice("defense.crafting.objectives", objective, OBJECTIVES)
        choice("defense.crafting.exits", self.exits, EXITS)

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
        """Craft x_adv_NCHW in [0, 1]; `step` chooses the objective."""
        del origin
        objective = self.objectives[step % len(self.objectives)]
        start = (x + self.noise(x, ball, generator)).clamp_(0, 1)
        if self.projected:
            start = ball.project(start, x)
        clean = None
        if objective != "cross_entropy":
            with torch.no_grad():
                clean = net(x).float()
        exit_N = None
        if self.exits == "random":
            exit_N = drawn(
                lambda shape: torch.randint(net.exits, shape, generator=generator, device=y.device), y.shape, generator
            )
        x_adv = start
        for _ in range(self.steps):
            at = x_adv.detach().requires_grad_(True)
            with torch.enable_grad():
                logits = net(at).float()
                losses_NE = cross_entropy(logits, y)
                if clean is not None:
                    losses_NE = losses_NE + distance(objective, clean, logits)
                loss_N = losses_NE.mean(dim=1) if exit_N is None else losses_NE.gather(1, exit_N[:, None])[:, 0]
                grad = input_gradient(loss_N.sum(), at)
            x_adv = ball.step(at.detach(), grad, self.step * ball.eps).clamp_(0, 1)
            if self.projected:
                x_adv = ball.project(x_adv, x)
        return {ADVERSARIAL: x_adv}

    def noise(self, x: torch.Tensor, ball: Ball, generator: torch.Generator) -> torch.Tensor:
        """Draw what the start adds to x_NCHW."""
        if self.start != "sign":
            return ball.noise(x, generator, self.start_size)
        sides = ball.noise(x, generator).sign()
        if ball.norm != LINF:
            sides = sides / ball.length(sides).to(sides)[:, None, None, None]
        return sides * (self.start_size * ball.eps)

    def one_step(self) -> GradientSign:
        """Return one step of the whole length, at every exit: an image crafted against one exit spares the others."""
        return replace(self, exits="mean", step=self.steps * self.step, steps=1)
