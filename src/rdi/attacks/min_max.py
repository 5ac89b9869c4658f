"""Min-max over exits: one image on which every exit falls, with weights that go to the exits that still resist."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from rdi.attacks.gradient import GradientAttack
from rdi.attacks.objectives import loss_named, share_fooled
from rdi.attacks.simplex import MinMaxWeights, simplex_projection
from rdi.checks import number
from rdi.exits.net import MultiExitNet


@dataclass(kw_only=True)
class MinMax(GradientAttack):
    """Ascend sum_k w_k loss_k while w descends on it over the simplex, image by image (Wang et al., NeurIPS 2021,
    Algorithm 1, with exits in place of models and the sign of the gradient in place of the gradient).

    w starts at 1/E; before every step but the first w <- projection of w + rate * (-loss - regulariser * (w - 1/E)).
    Among iterates the best is, after the number of fooled exits, that of the largest
    min_w sum_k w_k loss_k + regulariser/2 * |w - 1/E|^2.

    rate: length of a step of the weights, > 0; 1/50 as published.
    regulariser: the published gamma, >= 0; large: the average attack; 0: only the exit that still resists counts.
    loss: of an exit, "ce" cross-entropy or "dlr" (Croce & Hein, ICML 2020).
    Costs one pass of the whole network a step, as the average attack. Raises UserError for values out of range.
    """

    rate: float = 0.02
    regulariser: float = 4.0
    loss: str = "ce"

    def __post_init__(self) -> None:
        super().__post_init__()
        loss_named(self.loss)
        number("attack.rate", self.rate, 0, math.inf, open_low=True)
        number("attack.regulariser", self.regulariser, 0, math.inf)
        self._rule = MinMaxWeights(rate=self.rate, regulariser=self.regulariser, floor=0.0, direction="easiest")

    def run(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Craft x_adv_NCHW: the best iterate per sample, over all restarts."""
        return self.restarted(lambda: _Judge(self, model, y), x, generator)

    def moved(self, weights_NE: torch.Tensor, losses_NE: torch.Tensor) -> torch.Tensor:
        """Return the weights after one step of theirs."""
        return self._rule.moved(weights_NE, losses_NE)

    def value(self, losses_NE: torch.Tensor) -> torch.Tensor:
        """Return the regularised minimum over all weights, value_N."""
        if self.regulariser == 0:
            return losses_NE.amin(dim=1)
        equal = 1 / losses_NE.shape[1]
        weights = simplex_projection(equal - losses_NE / self.regulariser)
        return (weights * losses_NE + self.regulariser / 2 * (weights - equal).square()).sum(dim=1)


class _Judge:
    """What one ascent climbs: remembers the weights from step to step."""

    def __init__(self, attack: MinMax, model: MultiExitNet, y: torch.Tensor) -> None:
        self.attack, self.model, self.y = attack, model, y
        self.weights: torch.Tensor | None = None
        self.calls = 0

    def __call__(self, x_adv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.model(x_adv).float()
        losses = loss_named(self.attack.loss)(logits, self.y)
        held = losses.detach()
        if self.weights is None:
            self.weights = torch.full_like(held, 1 / held.shape[1])
        elif self.calls % self.attack.eot == 0:  # by the first draw of every iterate but the first
            self.weights = self.attack.moved(self.weights, held)
        self.calls += 1
        weighted = (self.weights * losses).sum(dim=1)
        # the gradient of the weighted sum; the value of the min-max problem, which can be compared between iterates
        return self.attack.value(held) + weighted - weighted.detach(), share_fooled(logits.detach(), self.y)
