"""Blind training images: the shortest adversarial perturbations, cut at their mean length and scaled."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdi.attacks.norms import Ball
from rdi.checks import integer, number
from rdi.defenses.base import Origin
from rdi.defenses.crafting import Crafting
from rdi.defenses.terms import ADVERSARIAL
from rdi.exits.net import MultiExitNet


@dataclass(frozen=True, kw_only=True)
class Blind(Crafting):
    """x + scale * min(1, mean length / length) * perturbation, image by image: no eps is chosen (blind adversarial
    pruning, ICME 2021).

    The perturbation is DeepFool's (Moosavi-Dezfooli et al., CVPR 2016, algorithm 2) on the mean logits of the exits; a
    length is the root of its mean square over the pixels, the mean length that of the batch.

    steps: of DeepFool, at least 1; 5 as published.
    overshoot: share by which it goes beyond the border, >= 0; 0.02 as published.
    scale: in (0, 1]; 0.9 as published.
    The authors' code ships with a fixed length of 1 in place of the mean and a scale of 1, which cuts and scales
    nothing: this is the rule that they state. Raises UserError for values out of range.
    """

    steps: int = 5
    overshoot: float = 0.02
    scale: float = 0.9

    def __post_init__(self) -> None:
        integer("defense.crafting.steps", self.steps, 1)
        number("defense.crafting.overshoot", self.overshoot, 0, 10)
        number("defense.crafting.scale", self.scale, 0, 1, open_low=True)

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
        """Craft x_adv_NCHW in [0, 1], at a distance that the network decides: labels and ball are not looked at."""
        del y, ball, generator, step, origin
        return {ADVERSARIAL: x + self.scale * cut(self.shortest(net, x))}

    def shortest(self, net: MultiExitNet, x: torch.Tensor) -> torch.Tensor:
        """Return DeepFool's perturbations_NCHW, within the pixel range."""
        rows = torch.arange(len(x), device=x.device)  # of those that are not over the border yet
        moved = torch.zeros_like(x)
        classes = torch.full_like(rows, -1)
        for _ in range(self.steps):
            with torch.enable_grad():
                point = (x[rows] + (1 + self.overshoot) * moved[rows]).clamp(0, 1).requires_grad_(True)
                logits = net(point).float().mean(dim=1)
                said = logits.argmax(dim=1)
                before = torch.where(classes[rows] < 0, said, classes[rows])
                on = (said == before).nonzero()[:, 0]
                if len(on) == 0:
                    break
                slopes = torch.stack(
                    [
                        torch.autograd.grad(logits[on, c].sum(), point, retain_graph=True)[0]
                        for c in range(logits.shape[1])
                    ],
                    dim=1,
                )[on]
            classes[rows] = before
            rows, before, logits = rows[on], before[on], logits[on].detach()
            moved[rows] += shortest_step(logits, slopes, before)
        return (x + (1 + self.overshoot) * moved).clamp(0, 1) - x


def shortest_step(logits: torch.Tensor, slopes: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Return the step_NCHW to the nearest border of the linear classifier with these values and slopes.

    logits: _NK, of K classes.
    slopes: of each of them, _NKCHW.
    classes: _N, the class to leave.
    """
    every = torch.arange(len(classes), device=classes.device)
    slopes = slopes - slopes[every, classes][:, None]
    gaps = (logits - logits[every, classes][:, None]).abs()
    sizes = slopes.flatten(2).norm(dim=2).clamp_min(1e-12)
    distance = (gaps / sizes).scatter(1, classes[:, None], torch.inf)
    nearest = distance.argmin(dim=1)
    length = distance[every, nearest] / sizes[every, nearest]
    return length[:, None, None, None] * slopes[every, nearest]


def cut(perturbations: torch.Tensor) -> torch.Tensor:
    """Cut perturbations_NCHW at the mean of their lengths, roots of mean squares."""
    lengths = perturbations.square().mean(dim=(1, 2, 3)).sqrt()
    factors = (lengths.mean() / lengths.clamp_min(1e-12)).clamp_max(1)
    return perturbations * factors[:, None, None, None]
