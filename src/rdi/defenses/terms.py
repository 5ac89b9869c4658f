"""Terms of a training loss on clean and adversarial logits: each maps a Batch to one loss per exit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from rdi.checks import choice, number

CLEAN, ADVERSARIAL, CARRIED = "clean", "adversarial", "carried"
DISTANCES = ("kl", "squared", "nuclear")


@dataclass(frozen=True)
class Batch:
    """Logits of one batch, with graph.

    logits: by the name of the images, "clean", "adversarial" or "carried" (see Carried): logits_NEC, float32; at
        least those that any term needs.
    y: labels_N, int64.
    """

    logits: Mapping[str, torch.Tensor]
    y: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Term(ABC):
    """A summand of a training loss.

    weight: factor at full strength, >= 0.
    ramp: share of the training, in [0, 1], over which the factor grows linearly from 0; 0: full from the start.
    Raises UserError for values out of range.
    """

    weight: float = 1.0
    ramp: float = 0.0

    def __post_init__(self) -> None:
        number("weight", self.weight, 0, math.inf)
        number("ramp", self.ramp, 0, 1)

    def weight_at(self, progress: float) -> float:
        """Return the factor at `progress`, the share of the training that is done."""
        return self.weight * min(1.0, progress / self.ramp) if self.ramp else self.weight

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """Names of the images whose logits the term reads."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Name in the training log."""

    @abstractmethod
    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return loss_E, the mean over the batch at every exit."""


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Term):
    """Cross-entropy of the true class.

    images: which, "clean" or "adversarial".
    smoothing: probability taken from the true class and spread evenly over all classes, in [0, 1)
        (Szegedy et al., CVPR 2016, section 7).
    """

    images: str
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("images", self.images, (CLEAN, ADVERSARIAL))
        number("smoothing", self.smoothing, 0, 0.999)

    @property
    def needs(self) -> frozenset[str]:
        """Return the one kind of logits."""
        return frozenset({self.images})

    @property
    def label(self) -> str:
        """Return clean_loss or adversarial_loss."""
        return f"{self.images}_loss"

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return loss_E."""
        logits = batch.logits[self.images].transpose(1, 2)
        y_NE = batch.y[:, None].expand(-1, logits.shape[2])
        return F.cross_entropy(logits, y_NE, label_smoothing=self.smoothing, reduction="none").mean(dim=0)


@dataclass(frozen=True, kw_only=True)
class Pairing(Term):
    """Distance between the adversarial logits and others of the same image, at every exit.

    distance: "kl", KL(reference || adversarial) of the class probabilities (TRADES, Zhang et al., ICML 2019, eq. 5);
        "squared", mean squared difference of the logits (adversarial logit pairing, Kannan et al. 2018, section 3);
        "nuclear", sum of the singular values of the N x C matrix of differences, divided by N (NuAT, Sriramanan et
        al., NeurIPS 2021, eq. 3).
    reference: the other images, "clean", or "carried", those at the perturbation of the last epoch (FGSM-MEP, Jia et
        al., ECCV 2022, eq. 8, with "squared").
    Raises UserError for other names.
    """

    distance: str
    reference: str = CLEAN

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("distance", self.distance, DISTANCES)
        choice("reference", self.reference, (CLEAN, CARRIED))

    @property
    def needs(self) -> frozenset[str]:
        """Return both kinds of logits."""
        return frozenset({self.reference, ADVERSARIAL})

    @property
    def label(self) -> str:
        """Return pairing_<distance>, with the reference where that is not clean."""
        return f"pairing_{self.distance}{'' if self.reference == CLEAN else f'_{self.reference}'}"

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return loss_E; the gradient goes through both logits."""
        clean, adversarial = batch.logits[self.reference], batch.logits[ADVERSARIAL]
        if self.distance == "nuclear":
            return torch.linalg.matrix_norm((clean - adversarial).transpose(0, 1), ord="nuc") / len(clean)
        return distance(self.distance, clean, adversarial).mean(dim=0)


def distance(name: str, clean: torch.Tensor, adversarial: torch.Tensor) -> torch.Tensor:
    """Return distance_NE between two logits_NEC.

    name: "kl", of their class probabilities, or "squared".
    """
    if name == "kl":
        log_p, log_q = clean.log_softmax(dim=2), adversarial.log_softmax(dim=2)
        return (log_p.exp() * (log_p - log_q)).sum(dim=2)
    return (clean - adversarial).square().mean(dim=2)
