"""Training on bounds that hold for the whole ball, at every exit, so that a certificate can be given."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rdi.attacks.base import Attack
from rdi.attacks.objectives import cross_entropy
from rdi.certificates.backward import has_linear_bounds
from rdi.certificates.bounds import BoundedNetwork, difference_bounds, differences
from rdi.certificates.box import ball
from rdi.checks import LINF, NORMS, number
from rdi.defenses.base import CountingDefense, Logs, accuracy_per_exit
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet


class Certified(CountingDefense):
    """Mean over exits of k * clean loss + (1 - k) * loss of the worst logits within the bounds.

    attack: judges the held-out images; its eps is that of the training unless eps says otherwise.
    eps: radius of the ball at the end, pixel units, in [0, 1]; published trainings take a little more than what is
        certified later. None: the attack's.
    warm_up: share of the training before the radius leaves 0, in [0, 1].
    ramp: share over which it then grows linearly to eps, while k falls from 1 to clean_weight, in [0, 1].
    clean_weight: k from the end of the ramp on, in [0, 1].
    linear: weight of linear against interval bounds at the start of the ramp, in [0, 1], falling to 0 at its end.
    exit_weights: E numbers >= 0, scaled to sum 1; None: equal.

    The worst logits are the upper bounds of logit j - logit y (interval bound propagation, Gowal et al., ICCV 2019,
    equations 10 to 12); linear mixes those of CROWN-IBP in (Zhang et al., ICLR 2020, section 3.2). Bounds take float32,
    BatchNorm's running statistics and no dropout.

    Raises UserError for values out of range, and for a layer without a bound.
    """

    def __init__(
        self,
        *,
        attack: Attack,
        eps: float | None = None,
        warm_up: float = 0.05,
        ramp: float = 0.6,
        clean_weight: float = 0.5,
        linear: float = 0.0,
        exit_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(exit_weights=exit_weights)
        self.attack: Attack = attack
        if attack.norm != LINF:
            raise UserError(
                f"defense=certified trains on bounds over an L-infinity ball, and the threat model is "
                f"{NORMS[attack.norm]}: choose another defense, or threat.norm=linf"
            )
        self.eps = None if eps is None else number("defense.eps", eps, 0, 1)
        self.warm_up = number("defense.warm_up", warm_up, 0, 1)
        self.ramp = number("defense.ramp", ramp, 0, 1)
        if self.warm_up + self.ramp > 1:
            raise UserError(f"defense.warm_up and defense.ramp must sum to at most 1, got {warm_up:g} and {ramp:g}")
        self.clean_weight = number("defense.clean_weight", clean_weight, 0, 1)
        self.linear = number("defense.linear", linear, 0, 1)
        self._bounded: tuple[MultiExitNet, BoundedNetwork] | None = None

    def ramped(self) -> float:
        """Return the share of the ramp that is done, in [0, 1]."""
        progress = self.step / self.steps - self.warm_up
        if progress < 0:
            return 0.0
        return min(1.0, progress / self.ramp) if self.ramp else 1.0

    def loss(
        self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, Logs]:
        """Return the mixed loss, and losses, verified accuracy and radius as logs."""
        done = self.ramped()
        eps = done * (self.attack.eps if self.eps is None else self.eps)
        clean_weight = 1 - done * (1 - self.clean_weight)
        logits, labels = self.gather(model(x).float()), self.gather(y)
        weights_E = logits.new_tensor(self.checked_weights(logits.shape[1]))
        weights_E = weights_E / weights_E.sum()
        clean_loss = (weights_E * cross_entropy(logits, labels).mean(dim=0)).sum()
        logs = {
            "loss": clean_loss.detach(),
            "clean_loss": clean_loss.detach(),
            "clean_accuracy": accuracy_per_exit(logits, labels),
            "eps": logits.new_tensor(eps),
        }
        loss = clean_loss
        # the first step asks for bounds too: a layer without one is refused before the training, not after the warm-up
        if eps or not self.step:
            with torch.autocast(x.device.type, enabled=False):
                worst = self.gather(self.worst(model, x, y, eps, self.linear * (1 - done)))
            worst_loss = (weights_E * cross_entropy(worst, labels).mean(dim=0)).sum()
            loss = clean_weight * clean_loss + (1 - clean_weight) * worst_loss
            logs |= {
                "loss": loss.detach(),
                "certified_loss": worst_loss.detach(),
                "certified_accuracy": accuracy_per_exit(worst, labels),
            }
        self.step += self.parts.over()
        return loss, logs

    def worst(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, eps: float, linear: float) -> torch.Tensor:
        """Return upper bounds_NEC of logit j - logit y over the ball, with graph.

        linear: weight of linear bounds.
        """
        if self._bounded is None or self._bounded[0] is not model:
            self._bounded = model, BoundedNetwork(model)
        done = self._bounded[1].run(ball(x, eps), rounded=False)
        found = []
        for k, (box, steps) in enumerate(zip(done.logits, done.heads, strict=True)):
            above = differences(box, steps, y, rounded=False).high
            if linear and has_linear_bounds(done.steps(k)):
                by_lines = difference_bounds(done, k, y, above.dtype, below=False).T
                above = linear * by_lines + (1 - linear) * above
            found.append(above)
        return torch.stack(found, dim=1)
