"""The baselines, written as in the official code and most tutorials: a full forward pass and weight gradients per step.

Nothing else in the project uses this module; tests hold the fast attacks equal to it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from rdi.exits import MultiExitNet

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits_NEC, y_N) -> scalar."""


def exit_loss(k: int) -> Loss:
    """Mean cross-entropy of exit k."""
    return lambda logits, y: F.cross_entropy(logits[:, k], y)


def mean_loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean over the exits of the mean cross-entropies."""
    return torch.stack([F.cross_entropy(logits[:, k], y) for k in range(logits.shape[1])]).mean()


def noise(x: torch.Tensor, eps: float, generator: torch.Generator) -> torch.Tensor:
    """Draw a uniform random start in the ball, clipped to [0, 1]."""
    draw = torch.rand(x.shape, generator=generator, device=x.device)
    return torch.min(torch.max(x + (2 * draw - 1) * eps, x - eps), x + eps).clamp(0, 1)


def pgd(
    model: MultiExitNet,
    x: torch.Tensor,
    y: torch.Tensor,
    loss: Loss,
    start: torch.Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
) -> torch.Tensor:
    """Run projected gradient ascent on `loss`; return the last iterate."""
    x_adv = start
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_(True)
        value = loss(model(x_adv), y)
        value.backward()
        assert x_adv.grad is not None
        x_adv = x_adv.detach() + step_size * x_adv.grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    return x_adv.detach()


def max_average(
    model: MultiExitNet,
    x: torch.Tensor,
    y: torch.Tensor,
    starts: list[torch.Tensor],
    *,
    eps: float,
    step_size: float,
    steps: int,
) -> torch.Tensor:
    """Attack each exit in turn; return, per image, the candidate with the largest mean loss over exits."""
    candidates, losses = [], []
    for k, start in enumerate(starts):
        x_adv = pgd(model, x, y, exit_loss(k), start, eps=eps, step_size=step_size, steps=steps)
        with torch.no_grad():
            logits = model(x_adv)
        losses.append(
            torch.stack([F.cross_entropy(logits[:, e], y, reduction="none") for e in range(logits.shape[1])]).mean(0)
        )
        candidates.append(x_adv)
    best = torch.stack(losses).argmax(dim=0)
    return torch.stack(candidates)[best, torch.arange(len(x), device=x.device)]


def training_step(
    model: MultiExitNet,
    optimizer: torch.optim.Optimizer,
    x: torch.Tensor,
    y: torch.Tensor,
    craft: Callable[[], torch.Tensor] | None,
) -> None:
    """Make one step of hybrid adversarial training, crafted in training mode as the official code does.

    craft: makes x_adv_NCHW; None: standard training.
    """
    model.train()
    x_adv = None if craft is None else craft()
    optimizer.zero_grad()
    logits = model(x)
    loss = torch.stack([F.cross_entropy(logits[:, k], y) for k in range(logits.shape[1])]).sum()
    if x_adv is not None:
        logits = model(x_adv)
        attacked = torch.stack([F.cross_entropy(logits[:, k], y) for k in range(logits.shape[1])]).sum()
        loss = 0.5 * loss + 0.5 * attacked
    loss.backward()
    optimizer.step()
    loss.item()
