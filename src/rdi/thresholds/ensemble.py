"""Exits that answer together: exit k says what the exits 0..k say on average (Wolczyk et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rdi.checks import choice, number
from rdi.errors import UserError
from rdi.records import Costs, Plain
from rdi.thresholds.calibration import Calibration
from rdi.thresholds.policy import Policy, ThresholdPolicy
from rdi.thresholds.rules import Rule
from rdi.thresholds.scores import log_probabilities

MEANS = ("geometric", "arithmetic")


def running_mean(logits_NKC: torch.Tensor, mean: str, weights: Sequence[float] | None) -> torch.Tensor:
    """Logits of exits 0..K-1 -> log of the weighted mean of their probabilities up to each exit, logits_NKC.

    The geometric mean is not normalised, as logits need not be. weights: per exit, None = equal.
    """
    # two exits that are certain of different classes leave no class possible: the floor makes that the largest doubt
    log_p = log_probabilities(logits_NKC)
    exits = log_p.shape[1]
    weight_K = log_p.new_tensor([1.0] * exits if weights is None else list(weights)[:exits])[:, None]
    total = weight_K.cumsum(dim=0)
    if mean == "geometric":
        return (log_p * weight_K).cumsum(dim=1) / total
    return (log_p + weight_K.log()).logcumsumexp(dim=1) - total.log()


class EnsemblePolicy(Policy):
    """Another policy on the running mean of the exits, which also gives the answer.

    mean: "geometric" or "arithmetic", of probabilities. weights: one positive number per exit, None = equal.
    """

    def __init__(self, policy: Policy, mean: str = "geometric", weights: Sequence[float] | None = None) -> None:
        self.policy = policy
        self.mean = choice("threshold.mean", mean, MEANS)
        self.weights = None if weights is None else _weights(weights)
        self.exits, self.values, self.draws = policy.exits, policy.values, policy.draws
        _check_weights(self.weights, self.exits)

    def leaves(self, logits_NKC: torch.Tensor) -> torch.Tensor:
        """Return leaves_N of the inner policy on the running mean."""
        return self.policy.leaves(running_mean(logits_NKC, self.mean, self.weights))

    def choose(self, logits_NEC: torch.Tensor) -> torch.Tensor:
        """Return exit_N of the inner policy on the running mean."""
        self.check_exits(logits_NEC)
        return self.policy.choose(running_mean(logits_NEC, self.mean, self.weights))

    def answers(self, logits_NKC: torch.Tensor) -> torch.Tensor:
        """Return the running mean as logits_NKC."""
        return self.policy.answers(running_mean(logits_NKC, self.mean, self.weights))

    def drawn(self, draw: int) -> EnsemblePolicy:
        """Return the ensemble over the inner policy of that draw."""
        return EnsemblePolicy(self.policy.drawn(draw), self.mean, self.weights)

    def without_chance(self) -> EnsemblePolicy:
        """Return the ensemble over the inner policy without chance."""
        return EnsemblePolicy(self.policy.without_chance(), self.mean, self.weights)

    def thresholds(self) -> ThresholdPolicy | None:
        """Return the inner policy's thresholds, which are on the running mean."""
        return self.policy.thresholds()

    def __str__(self) -> str:
        """Say in words what the policy does."""
        return f"{self.mean} mean of the exits so far; {self.policy}"


class EnsembleRule(Rule):
    """Any other rule, fitted on the running means of the exits. mean, weights: see EnsemblePolicy."""

    def __init__(self, *, rule: Rule, mean: str = "geometric", weights: Sequence[float] | None = None) -> None:
        self.rule = rule
        self.mean = choice("threshold.mean", mean, MEANS)
        self.weights = None if weights is None else _weights(weights)
        self.data, self.always_fits = rule.data, rule.always_fits

    def check(self, exits: int, costs: Costs) -> None:
        """Raise UserError for weights of another number of exits, or where the inner rule does."""
        _check_weights(self.weights, exits)
        self.rule.check(exits, costs)

    def fit(self, calibration: Calibration) -> EnsemblePolicy:
        """Return the ensemble over what the inner rule fits on the running mean."""
        _check_weights(self.weights, calibration.logits.shape[1])
        return EnsemblePolicy(self.rule.fit(self._together(calibration)), self.mean, self.weights)

    def facts(self, calibration: Calibration, policy: Policy) -> dict[str, Plain]:
        """Return the facts of the inner rule."""
        assert isinstance(policy, EnsemblePolicy)
        return self.rule.facts(self._together(calibration), policy.policy)

    def _together(self, calibration: Calibration) -> Calibration:
        return calibration.mapped(lambda logits: running_mean(logits, self.mean, self.weights))


def _weights(weights: Sequence[float]) -> list[float]:
    return [number("threshold.weights", weight, 0, float("inf"), open_low=True) for weight in weights]


def _check_weights(weights: list[float] | None, exits: int) -> None:
    if weights is not None and len(weights) != exits:
        raise UserError(f"threshold.weights must list {exits} numbers, one per exit, got {len(weights)}")
