"""Check that there are gradients to climb at all ("unavailable gradients", Pintor et al., NeurIPS 2022)."""

from __future__ import annotations

import torch

from rdi.attacks import crafting
from rdi.attacks.objectives import cross_entropy
from rdi.exits.net import MultiExitNet
from rdi.health.evaluation import Evaluation
from rdi.records import Check

ALLOWED = 0.05
"""Share of images per exit that may have no gradient; nets that are very sure of easy images have a few."""


def zero_gradients(evaluation: Evaluation) -> Check:
    """Check, per exit, the share of images at which the cross-entropy's gradient is exactly zero or not finite."""
    places = {"clean": evaluation.clean, "attacked": evaluation.under(evaluation.main).images}
    shares = {place: zero_gradient_share(evaluation, x) for place, x in places.items()}
    shown = [f"{place} {'/'.join(f'{100 * share:.1f}' for share in shares)}" for place, shares in shares.items()]
    return Check(
        name="zero gradients",
        passed=max(share for shares in shares.values() for share in shares) <= ALLOWED,
        figure=f"images without a gradient, per exit: {', '.join(shown)} % (allowed {100 * ALLOWED:g} %)",
        meaning="Masked gradients: at some exit an attack has nothing to follow, so surviving it means nothing.",
    )


def zero_gradient_share(evaluation: Evaluation, x: torch.Tensor) -> list[float]:
    """Return, per exit, the share of images x_NCHW whose input gradient is exactly zero or not finite."""
    shares = []
    for begin in range(0, len(x), evaluation.batch_size):
        part = slice(begin, begin + evaluation.batch_size)
        labels = evaluation.split.labels[part]
        shares.append(zero_gradient_NE(evaluation.net, x[part].to(labels.device), labels))
    return torch.cat(shares).double().mean(dim=0).tolist()


def zero_gradient_NE(net: MultiExitNet, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return bool_NE: the loss of that exit has no usable gradient at that image."""
    columns = []
    with torch.enable_grad(), crafting(net):
        x = x.detach().requires_grad_(True)
        for k in range(net.exits):
            # exit by exit: in one pass a slope that is not finite at one exit would spoil the others (0 * inf)
            loss = cross_entropy(net.logits_at(x, [k]).float(), y).sum()
            columns.append(no_gradient(loss, x))
    return torch.stack(columns, dim=1)


def no_gradient(value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return bool_N, on the CPU: the scalar `value` has no usable gradient at that image of x_NCHW."""
    (grad,) = torch.autograd.grad(value, x, allow_unused=True) if value.requires_grad else (None,)
    largest = torch.zeros(len(x)) if grad is None else grad.abs().flatten(1).amax(dim=1).cpu()
    return (largest == 0) | ~largest.isfinite()
