"""Exits that must agree: an image leaves only where neighbouring exits are certain of the same class.

Patience (Zhou et al., NeurIPS 2020) counts equal classes in a row; here the exits must be certain as well. Agreement is
graded: it is the part that the exits' distributions have in common, one minus their total variation distance. So it has
gradients for an attacker to climb, and a robust accuracy is not owed to a missing gradient.
"""

from __future__ import annotations

import torch

from rdi.checks import integer
from rdi.errors import UserError
from rdi.thresholds.calibration import Calibration
from rdi.thresholds.combined import CombinedPolicy, CombinedRule
from rdi.thresholds.gaps import EDGE
from rdi.thresholds.policy import Policy, ThresholdPolicy
from rdi.thresholds.rules import Rule
from rdi.thresholds.scores import log_probabilities

FLOOR = 1e-30
"""Probability below which what is not in common is not told apart."""


def common(logits_NKC: torch.Tensor, agreeing: int) -> torch.Tensor:
    """Return the log probabilities, NKC, that each exit has in common with the agreeing - 1 exits before it.

    Per class the smallest probability of these exits; what is missing to 1 is shared out evenly. Exits that have too
    few before them say what they say alone. Returns logits_NKC.
    """
    exits, classes = logits_NKC.shape[1:]
    log_p = log_probabilities(logits_NKC)
    if exits < agreeing:
        return log_p
    windows = [log_p[:, back : exits - agreeing + 1 + back] for back in range(agreeing)]
    least = torch.stack(windows).amin(dim=0)
    # a sum of differences: one minus a sum near one would round small ones away
    missing = (windows[-1].exp() - least.exp()).sum(dim=2, keepdim=True)
    shared = torch.logaddexp(least, (missing / classes).clamp_min(FLOOR).log())
    return torch.cat([log_p[:, : agreeing - 1], shared], dim=1)


class AgreementPolicy(CombinedPolicy):
    """Another policy on what the last `agreeing` exits have in common, which is also the answer.

    The last exit answers alone.

    policy: of E exits.
    agreeing: number of exits that must agree, in [2, E-1]; exit agreeing - 1 is the first that can let an image leave.
    Raises UserError for another number.
    """

    def __init__(self, policy: Policy, agreeing: int = 2) -> None:
        super().__init__(policy)
        if policy.exits < 3:
            raise UserError(f"agreement compares exits, and this network has {policy.exits}: use threshold=entropy")
        self.agreeing = integer("threshold.agreeing", agreeing, 2, policy.exits - 1)

    def combine(self, logits_NKC: torch.Tensor) -> torch.Tensor:
        """Return what each exit has in common with those before it, as logits_NKC; the last exit's own."""
        together = common(logits_NKC, self.agreeing)
        if logits_NKC.shape[1] < self.exits:
            return together
        return torch.cat([together[:, :-1], logits_NKC[:, -1:].float()], dim=1)

    def around(self, policy: Policy) -> AgreementPolicy:
        """Return the same agreement with another policy inside."""
        return AgreementPolicy(policy, self.agreeing)

    def leaves(self, logits_NKC: torch.Tensor) -> torch.Tensor:
        """Return leaves_N of the inner policy; nobody before `agreeing` exits have run."""
        if logits_NKC.shape[1] < self.agreeing:
            return logits_NKC.new_zeros(len(logits_NKC), dtype=torch.bool)
        return super().leaves(logits_NKC)

    def choose(self, logits_NEC: torch.Tensor) -> torch.Tensor:
        """Return exit_N of the inner policy, from exit agreeing - 1 on."""
        self.check_exits(logits_NEC)
        together = self.combine(logits_NEC)
        exit_N = torch.full(together.shape[:1], self.exits - 1, device=together.device)
        for k in range(self.exits - 2, self.agreeing - 2, -1):
            exit_N = torch.where(self.policy.leaves(together[:, : k + 1]), k, exit_N)
        return exit_N

    def thresholds(self) -> ThresholdPolicy | None:
        """Return the inner policy's thresholds, which nobody passes before exit agreeing - 1; None: it has none."""
        inside = self.policy.thresholds()
        if inside is None:
            return None
        never = -EDGE if not inside.score.higher_is_surer else EDGE
        first = self.agreeing - 1
        return ThresholdPolicy(inside.score, [*[never] * first, *inside.values[first:]])

    def __str__(self) -> str:
        """Say in words what the policy does."""
        return f"{self.agreeing} exits in a row must agree; {self.policy}"


class AgreementRule(CombinedRule):
    """Any other rule, fitted on what exits have in common.

    rule: fits the policy inside.
    agreeing: number of exits that must agree, as of AgreementPolicy.
    Raises UserError when the other rule lets images leave before so many exits have answered.
    """

    def __init__(self, *, rule: Rule, agreeing: int = 2) -> None:
        super().__init__(rule)
        self.agreeing = integer("threshold.agreeing", agreeing, 2)

    def around(self, policy: Policy) -> AgreementPolicy:
        """Return the agreement of the fitted policy."""
        return AgreementPolicy(policy, self.agreeing)

    def fit(self, calibration: Calibration) -> CombinedPolicy:
        """Return the fitted agreement. Raises UserError where images would leave before `agreeing` exits have run."""
        fitted = super().fit(calibration)
        alone = self._together(calibration.rows(torch.zeros(1, dtype=torch.long))).logits
        if any(bool(fitted.policy.leaves(alone[:, : k + 1]).any()) for k in range(self.agreeing - 1)):
            cost = calibration.costs.macs[self.agreeing - 1]
            raise UserError(
                f"with threshold.agreeing={self.agreeing} no image costs less than {cost} MACs (exit "
                f"{self.agreeing - 1}), and the rule inside lets images leave before: allow it more, or type lower "
                "thresholds"
            )
        return fitted

    def _together(self, calibration: Calibration) -> Calibration:
        """Replace the logits of exits with too few before them, of which the inner rule has no use, by equal ones."""
        known = torch.arange(calibration.logits.shape[1]) >= self.agreeing - 1
        return super()._together(calibration).mapped(lambda logits: logits * known[:, None])
