"""Reweighted regularisation: small groups of weights are pushed to zero, then pruned, and the rest is trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rdi.checks import number
from rdi.compression.base import Parts
from rdi.compression.pruning import LayerPruning, norms, spread
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet

OFFSET = 1e-3
"""Added to a norm before it divides, as in the authors' code."""
PUBLISHED = {"weights": 1e-8, "filters": 1.6e-3, "columns": 1e-4}
"""Structure -> factor of the penalty in the authors' code."""


class Reweighted(LayerPruning):
    """Add penalty * sum_g alpha_g * |group g| to the loss; then prune hard, layer by layer, and retrain what is left
    (Zhang et al. 2020, arXiv 2004.05531).

    alpha_g = 1 / (|group g| + 0.001), anew at every milestone: the dynamic part. |.| is the absolute value of a weight
    and the L2 norm of filters and columns.

    penalty: factor, >= 0; None: the published one, 1e-8 for weights, 1.6e-3 for filters, 1e-4 for columns.
    milestones: shares of the training, ascending, in [0, prune_at), at which the factors are made anew; the first ones
        are made at the first step.
    prune_at: share of the training, in (0, 1], at which groups are pruned and the penalty ends.
    ratio, structure, start: see LayerPruning.
    On top of adversarial training it is the method of the paper's journal version: the defense says on which images.
    Raises UserError for values out of range.
    """

    def __init__(
        self,
        *,
        ratio: float,
        structure: str = "weights",
        penalty: float | None = None,
        milestones: Sequence[float] = (0.1, 0.2, 0.3, 0.4),
        prune_at: float = 0.5,
        start: str | None = None,
    ) -> None:
        super().__init__(ratio=ratio, structure=structure, start=start)
        self.penalty = PUBLISHED[structure] if penalty is None else number("compression.penalty", penalty, 0, math.inf)
        self.prune_at = number("compression.prune_at", prune_at, 0, 1, open_low=True)
        self.milestones = [number("compression.milestones", one, 0, 1) for one in milestones]
        if sorted(set(self.milestones)) != self.milestones or any(one >= self.prune_at for one in self.milestones):
            raise UserError(
                f"compression.milestones must ascend and lie below prune_at={self.prune_at:g}, got {list(milestones)}"
            )
        self._factors: Parts = {}

    def prepare(self, net: MultiExitNet) -> list[nn.Parameter]:
        """Learn which layers to prune; return all parameters to optimise."""
        self._factors = {}
        return super().prepare(net)

    @torch.no_grad()
    def before_step(self) -> None:
        """Add the gradient of the penalty; after pruning, leave what was pruned without a gradient."""
        if self._masks:
            self.mask_gradients()
            return
        if not self._factors or self._step in {round(one * self.steps) for one in self.milestones}:
            self._factors = {
                name: 1 / (norms(weight, self.structure) + OFFSET) for name, weight in self._layers.items()
            }
        for name, weight in self._layers.items():
            if weight.grad is not None:
                weight.grad.add_(self.direction(weight, self._factors[name]), alpha=self.penalty)

    def direction(self, weight: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """Return the gradient of sum_g factor_g * |group g|; 0 at a group that is zero."""
        if self.structure == "weights":
            return spread(factors, weight, self.structure) * weight.detach().sign()
        sizes = norms(weight, self.structure)
        return spread(factors / sizes.clamp_min(1e-12), weight, self.structure) * weight.detach()

    def after_step(self) -> None:
        """Prune when it is time, and keep zero what was pruned."""
        self._step += 1
        if not self._masks and self._step >= max(1, round(self.prune_at * self.steps)):
            self.prune(self.ratio)
        else:
            self.apply_masks()

    @torch.no_grad()
    def logs(self) -> dict[str, float]:
        """Return pruned_norm, the share of the squared norm of all weights that pruning would remove now."""
        with self.deployed():
            left = sum(float(weight.square().sum()) for weight in self._layers.values())
        total = sum(float(weight.square().sum()) for weight in self._layers.values())
        return {"pruned_norm": 1 - left / total if total else 0.0}

    def state(self) -> dict[str, Any]:
        """Return step, masks and the factors of the last milestone."""
        return {**super().state(), "factors": self._factors}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over step, masks and factors."""
        super().load_state(state)
        if state:
            self._factors = dict(state["factors"])
