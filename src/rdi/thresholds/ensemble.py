"""Exits that answer together: exit k gives the mean prediction of exits 0..k (Wolczyk et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rdi.checks import choice, number
from rdi.errors import UserError
from rdi.thresholds.combined import CombinedPolicy, CombinedRule
from rdi.thresholds.policy import Policy
from rdi.thresholds.rules import Rule
from rdi.thresholds.scores import log_probabilities

MEANS = ("geometric", "arithmetic")


def running_mean(logits_NKC: torch.Tensor, mean: str, weights: Sequence[float] | None) -> torch.Tensor:
    """Compute the log of the weighted mean of the exits' probabilities up to each exit, logits_NKC.

    The geometric mean is not normalised, as logits need not be.

    weights: per exit, None = equal.
    """
    # two exits that are certain of different classes leave no class possible: the floor makes that the largest entropy
    log_p = log_probabilities(logits_NKC)
    exits = log_p.shape[1]
    weight_K = log_p.new_tensor([1.0] * exits if weights is None else list(weights)[:exits])[:, None]
    total = weight_K.cumsum(dim=0)
    if mean == "geometric":
        return (log_p * weight_K).cumsum(dim=1) / total
    return (log_p + weight_K.log()).logcumsumexp(dim=1) - total.log()


class EnsemblePolicy(CombinedPolicy):
    """Another policy on the running mean of the exits, which also gives the answer.

    mean: "geometric" or "arithmetic", of probabilities.
    weights: one positive number per exit, None = equal.
    """

    def __init__(self, policy: Policy, mean: str = "geometric", weights: Sequence[float] | None = None) -> None:
        super().__init__(policy)
        self.mean = choice("threshold.mean", mean, MEANS)
        self.weights = None if weights is None else _weights(weights)
        if self.weights is not None and len(self.weights) != self.exits:
            raise UserError(f"threshold.weights must list {self.exits} numbers, one per exit, got {len(self.weights)}")

    def combine(self, logits_NKC: torch.Tensor) -> torch.Tensor:
        """Return the running mean of the exits as logits_NKC."""
        return running_mean(logits_NKC, self.mean, self.weights)

    def around(self, policy: Policy) -> EnsemblePolicy:
        """Return the same ensemble with another policy inside."""
        return EnsemblePolicy(policy, self.mean, self.weights)

    def __str__(self) -> str:
        """Say in words what the policy does."""
        return f"{self.mean} mean of the exits so far; {self.policy}"


class EnsembleRule(CombinedRule):
    """Any other rule, fitted on the running means of the exits.

    rule: fits the policy inside.
    mean, weights: as of EnsemblePolicy.
    """

    def __init__(self, *, rule: Rule, mean: str = "geometric", weights: Sequence[float] | None = None) -> None:
        super().__init__(rule)
        self.mean = choice("threshold.mean", mean, MEANS)
        self.weights = None if weights is None else _weights(weights)

    def around(self, policy: Policy) -> EnsemblePolicy:
        """Return the ensemble around the fitted policy."""
        return EnsemblePolicy(policy, self.mean, self.weights)


def _weights(weights: Sequence[float]) -> list[float]:
    return [number("threshold.weights", weight, 0, float("inf"), open_low=True) for weight in weights]
