"""Thresholds with a guarantee: with high probability the risk of leaving early is small, whatever the data are.

Learn then test (Angelopoulos et al., 2021) for early exits (Jazbec et al., NeurIPS 2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from rdi.binomial import at_most
from rdi.checks import choice, integer, number
from rdi.errors import UserError
from rdi.records import Plain
from rdi.seeds import generator
from rdi.thresholds.calibration import Bank, Calibration
from rdi.thresholds.gaps import EDGE
from rdi.thresholds.policy import Policy, ThresholdPolicy
from rdi.thresholds.rules import NOT_CERTIFIED, Rule, ShareRule, geometric_shares
from rdi.thresholds.scores import Score, scored

RISKS = ("drop", "error")
DATA = ("clean", "adversarial")
RATIOS = tuple(float(ratio) for ratio in np.logspace(2, -2, 81))
"""Ratios of the exit shares, from nearly everybody at the last exit to nearly everybody at the first."""


class RiskRule(Rule):
    """The cheapest thresholds whose risk is certified to be at most `alpha` with probability 1 - `delta`.

    The calibration samples are partitioned at random. The design part fits a sequence of policies, from cautious to
    bold; the other part tests them in this order, each at level delta, until one fails (fixed-sequence testing). The
    losses are 0 or 1, so the binomial tail is an exact p-value, and the guarantee needs nothing but calibration samples
    drawn from the distribution of deployment. If the first policy fails, nothing is certified, which the facts say:
    nobody leaves early for "drop" (no risk at all), and "error" raises UserError.

    score: of the exits.
    alpha: largest risk, in (0, 1).
    delta: largest probability that the risk is larger, in (0, 1).
    risk: "error", the share of wrong answers; "drop", the share of samples that the full network has right and the
        policy wrong, which bounds the loss of accuracy.
    data: "clean", or "adversarial": wrong under any of the attacks on the calibration split; the guarantee is then for
        images attacked in the same way.
    design: share of the samples in the design part, in (0, 1).
    seed: of the partition.
    Source: learn then test, Angelopoulos et al., 2021, for early exits (Jazbec et al., NeurIPS 2024).
    """

    def __init__(
        self,
        *,
        score: Score,
        alpha: float,
        delta: float = 0.1,
        risk: str = "drop",
        data: str = "clean",
        design: float = 0.3,
        seed: int = 0,
    ) -> None:
        self.score = score
        self.alpha = number("threshold.alpha", alpha, 0, 1, open_low=True)
        self.delta = number("threshold.delta", delta, 0, 1, open_low=True)
        self.risk = choice("threshold.risk", risk, RISKS)
        self.data = choice("threshold.data", data, DATA)
        self.design = number("threshold.design", design, 0.01, 0.99)
        self.seed = integer("threshold.seed", seed, 0)
        self.always_fits = self.risk == "drop" and self.data == "clean"

    def fit(self, calibration: Calibration) -> ThresholdPolicy:
        """Return the boldest policy of the sequence that is certified. Raises UserError for "error" where none is."""
        design, test = self._partition(calibration)
        exits = calibration.logits.shape[1]
        certain = EDGE if self.score.higher_is_surer else -EDGE
        accepted = ThresholdPolicy(self.score, [certain] * (exits - 1))
        if self.risk == "error" and self._p_value(accepted, test) > self.delta:
            wrong, total = self._losses(accepted, test)
            too_few = self._too_few(total)
            raise UserError(
                f"even the full network cannot be certified to err on at most threshold.alpha={self.alpha:g} "
                f"({wrong} of {total} calibration images wrong): raise threshold.alpha"
                f"{'; ' if too_few else ''}{too_few}"
            )
        for policy in self._sequence(design):
            if self._p_value(policy, test) > self.delta:
                break
            accepted = policy
        return accepted

    def _sequence(self, design: Sequence[Bank]) -> Iterator[ThresholdPolicy]:
        """Policies from cautious to bold."""
        scores = scored(self.score, torch.cat([bank.logits for bank in design]))
        for ratio in RATIOS:
            shares = geometric_shares(scores.shape[1], ratio)
            yield ShareRule(score=self.score, shares=shares).fit_scores(scores)

    def facts(self, calibration: Calibration, policy: Policy) -> dict[str, Plain]:
        """Return the guarantee and what it was tested on."""
        _, test = self._partition(calibration)
        losses, total = self._losses(policy, test)
        reason = self._uncertified(calibration, policy)
        return {
            **({NOT_CERTIFIED: reason} if reason else {}),
            "guarantee": f"{self.risk} <= alpha with probability >= 1 - delta",
            "alpha": self.alpha,
            "delta": self.delta,
            "data": self.data,
            "losses": losses,
            "tested_on": total,
            "p_value": self._p_value(policy, test),
        }

    def _uncertified(self, calibration: Calibration, policy: Policy) -> str:
        """Say why the data certify no early exit at all; nothing where they certify one."""
        if any(abs(value) != EDGE for value in policy.values) or not policy.values:
            return ""
        design, test = self._partition(calibration)
        first = next((one for one in self._sequence(design) if any(abs(value) != EDGE for value in one.values)), policy)
        losses, total = self._losses(first, test)
        asked = f"alpha={self.alpha:g} at delta={self.delta:g}"
        if too_few := self._too_few(total):
            reason = f"{asked}: {too_few}: hold out more, data.calibration=..., or raise threshold.alpha"
        else:
            allowed = sum(at_most(count, total, self.alpha) <= self.delta for count in range(total + 1)) - 1
            reason = (
                f"{asked} allow {allowed} losses among {total} calibration images to test on, and the most cautious "
                f"thresholds lose {losses}: raise threshold.alpha or threshold.delta"
            )
        return f"these data certify no early exit, so every image runs the full network; {reason}"

    def _too_few(self, total: int) -> str:
        """Say how many images it takes where even no loss at all would certify nothing; else nothing."""
        least = 1 if self.alpha == 1 or self.delta == 1 else math.ceil(math.log(self.delta) / math.log1p(-self.alpha))
        if total >= least:
            return ""
        return f"without a single loss it takes {least} calibration images to test on, there are {total}"

    def _partition(self, calibration: Calibration) -> tuple[Sequence[Bank], Sequence[Bank]]:
        """Return the banks of the design samples and those of the test samples."""
        (part,) = calibration.of_kind(self.data)
        samples = len(part.banks[0].labels)
        order = torch.randperm(samples, generator=generator("cpu", self.seed, "risk"))
        cut = min(max(1, int(self.design * samples)), samples - 1)

        def of(rows: torch.Tensor) -> list[Bank]:
            return [Bank(bank.logits[rows], bank.labels[rows]) for bank in part.banks]

        return of(order[:cut]), of(order[cut:])

    def _losses(self, policy: Policy, banks: Sequence[Bank]) -> tuple[int, int]:
        """Count the samples that are lost, and all."""
        right = torch.stack([_right(policy, bank) for bank in banks]).all(dim=0)
        lost = ~right
        if self.risk == "drop":
            lost &= torch.stack([bank.logits[:, -1].argmax(dim=1) == bank.labels for bank in banks]).all(dim=0)
        return int(lost.sum()), len(lost)

    def _p_value(self, policy: Policy, banks: Sequence[Bank]) -> float:
        """Compute the p-value of "the risk exceeds alpha": the probability of so few losses, were it alpha."""
        losses, total = self._losses(policy, banks)
        return at_most(losses, total, self.alpha)


def _right(policy: Policy, bank: Bank) -> torch.Tensor:
    return policy.predict(bank.logits, policy.choose(bank.logits)) == bank.labels
