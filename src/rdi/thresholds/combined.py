"""Exits that decide together: another policy on logits that combine each exit with those before it."""

from __future__ import annotations

from abc import abstractmethod

import torch

from rdi.records import Costs, Plain
from rdi.thresholds.calibration import Calibration
from rdi.thresholds.policy import Policy, ThresholdPolicy
from rdi.thresholds.rules import Rule


class CombinedPolicy(Policy):
    """Another policy on combined logits, which are also the answers. Authors write `combine` and `around`.

    policy: decides on the combined logits; its exits, values and draws are those of this policy.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.exits, self.values, self.draws = policy.exits, policy.values, policy.draws

    @abstractmethod
    def combine(self, logits_NKC: torch.Tensor) -> torch.Tensor:
        """Map the logits of exits 0..K-1 to combined logits_NKC; exit k depends on the exits 0..k only."""

    @abstractmethod
    def around(self, policy: Policy) -> CombinedPolicy:
        """Return the combination with another policy inside."""

    def leaves(self, logits_NKC: torch.Tensor) -> torch.Tensor:
        """Return leaves_N of the inner policy on the combined logits."""
        return self.policy.leaves(self.combine(logits_NKC))

    def choose(self, logits_NEC: torch.Tensor) -> torch.Tensor:
        """Return exit_N of the inner policy on the combined logits."""
        self.check_exits(logits_NEC)
        return self.policy.choose(self.combine(logits_NEC))

    def answers(self, logits_NKC: torch.Tensor) -> torch.Tensor:
        """Return the inner policy's answers to the combined logits, as logits_NKC."""
        return self.policy.answers(self.combine(logits_NKC))

    def with_draw(self, draw: int) -> Policy:
        """Return the combination around the inner policy of that draw."""
        return self.around(self.policy.with_draw(draw))

    def deterministic(self) -> Policy:
        """Return the combination around the inner policy without randomness."""
        return self.around(self.policy.deterministic())

    def thresholds(self) -> ThresholdPolicy | None:
        """Return the inner policy's thresholds, which are on the combined logits."""
        return self.policy.thresholds()


class CombinedRule(Rule):
    """Another rule, fitted on combined logits. Authors write `around`, which may raise UserError for its options.

    rule: fits the policy inside; what it is fitted on (data) and whether it always fits are its own.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.data, self.always_fits = rule.data, rule.always_fits

    @abstractmethod
    def around(self, policy: Policy) -> CombinedPolicy:
        """Return the policy to deploy, with the fitted `policy` inside."""

    def check(self, exits: int, costs: Costs) -> None:
        """Raise UserError for options of another number of exits, or where the inner rule does."""
        self._combination(exits)
        self.rule.check(exits, costs)

    def fit(self, calibration: Calibration) -> CombinedPolicy:
        """Return the combination around what the inner rule fits on the combined logits."""
        return self.around(self.rule.fit(self._together(calibration)))

    def facts(self, calibration: Calibration, policy: Policy) -> dict[str, Plain]:
        """Return the facts of the inner rule."""
        assert isinstance(policy, CombinedPolicy)
        return self.rule.facts(self._together(calibration), policy.policy)

    def _together(self, calibration: Calibration) -> Calibration:
        return calibration.mapped(self._combination(calibration.logits.shape[1]).combine)

    def _combination(self, exits: int) -> CombinedPolicy:
        return self.around(_AlwaysLeave(exits))


class _AlwaysLeave(Policy):
    """Stand-in for the inner policy that is still to be fitted: every sample leaves."""

    def __init__(self, exits: int) -> None:
        self.exits = exits

    def leaves(self, logits_NKC: torch.Tensor) -> torch.Tensor:
        """Return that every sample leaves."""
        return logits_NKC.new_ones(len(logits_NKC), dtype=torch.bool)
