"""Adversarial weight perturbation (Wu et al., NeurIPS 2020): train at the worst nearby weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from rdi.checks import number


@dataclass(kw_only=True)
class WeightPerturbation:
    """Move every weight matrix by gamma * its norm along its normalised gradient, for one backward pass.

    gamma: relative length, in [0, 1]; 0.005 as published (section 5).
    start: share of the training, in [0, 1], before which nothing is perturbed.
    It costs one more training pass. BatchNorm statistics are left as that pass found them.
    Raises UserError for values out of range.
    """

    gamma: float = 0.005
    start: float = 0.0
    _moved: list[tuple[nn.Parameter, torch.Tensor]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        number("weight_perturbation.gamma", self.gamma, 0, 1)
        number("weight_perturbation.start", self.start, 0, 1)

    def perturb(
        self,
        model: nn.Module,
        loss: Callable[[], torch.Tensor],
        average: Callable[[list[torch.Tensor]], None] = lambda gradients: None,
    ) -> None:
        """Move the weights of `model` to where `loss`, a scalar with graph, grows; `restore` moves them back.

        average: makes gradients of this process, in place, those of all that share the batch.
        """
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.ndim > 1]
        kept = [buffer.clone() for buffer in model.buffers()]
        gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
        average([gradient for gradient in gradients if gradient is not None])
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), kept, strict=True):
                buffer.copy_(before)
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is None:
                    continue
                self._moved.append((weight, weight.detach().clone()))
                weight.add_(gradient * (self.gamma * weight.norm() / gradient.norm().clamp_min(1e-12)))

    def restore(self) -> None:
        """Undo the last `perturb`, to the bit; after the backward pass and before the optimiser's step."""
        with torch.no_grad():
            for weight, before in self._moved:
                weight.copy_(before)
        self._moved = []
