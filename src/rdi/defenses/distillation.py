"""Self-distillation between the exits of one network: the two terms of NEO-KD (Ham et al., NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdi.defenses.terms import ADVERSARIAL, CLEAN, Batch, Term


@dataclass(frozen=True, kw_only=True)
class NeighbourDistillation(Term):
    """Cross-entropy of each exit's adversarial prediction to the clean prediction of it and its neighbours.

    The teacher of exit k is the mean of the clean class probabilities of the exits k-1, k and k+1 that exist; no
    gradient goes through it (neighbour knowledge distillation, section 3.2).
    """

    needs = frozenset({CLEAN, ADVERSARIAL})
    label = "neighbour_distillation"

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return loss_E."""
        clean = batch.logits[CLEAN].detach().softmax(dim=2)
        exits = clean.shape[1]
        teachers = [clean[:, max(0, k - 1) : k + 2].mean(dim=1) for k in range(exits)]
        return soft_cross_entropy(torch.stack(teachers, dim=1), batch.logits[ADVERSARIAL]).mean(dim=0)


@dataclass(frozen=True, kw_only=True)
class OrthogonalDistillation(Term):
    """Cross-entropy of each exit's adversarial prediction to its own clean one, over wrong classes no exit shares.

    The wrong classes of a sample are dealt out to the exits, so that every one belongs to exactly one exit: the class
    y + d (modulo C) to the exit (d - 1) modulo E. The teacher of an exit keeps the clean probabilities of the true
    class and of its own wrong classes, scaled to sum 1; no gradient goes through it (exit-wise orthogonal knowledge
    distillation, section 3.3, which deals the classes out at random; here the deal is fixed, so that a training can
    be repeated).
    """

    needs = frozenset({CLEAN, ADVERSARIAL})
    label = "orthogonal_distillation"

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return loss_E."""
        clean = batch.logits[CLEAN].detach().softmax(dim=2)
        kept = clean * dealt(batch.y, clean.shape[1], clean.shape[2])
        teacher = kept / kept.sum(dim=2, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)
        return soft_cross_entropy(teacher, batch.logits[ADVERSARIAL]).mean(dim=0)


def dealt(y: torch.Tensor, exits: int, classes: int) -> torch.Tensor:
    """Return mask_NEC: 1 for the true class at every exit and for each wrong class at its one exit, else 0."""
    offset_NC = (torch.arange(classes, device=y.device) - y[:, None]) % classes
    owner_NC = (offset_NC - 1) % exits
    exit_E = torch.arange(exits, device=y.device)
    return (offset_NC[:, None] == 0) | (owner_NC[:, None] == exit_E[:, None])


def soft_cross_entropy(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return loss_NE of logits_NEC against class probabilities of the same shape."""
    return -(target * logits.log_softmax(dim=2)).sum(dim=2)
