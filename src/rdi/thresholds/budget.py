"""Thresholds under a budget: the best accuracy at a mean cost, or the least cost at an accuracy."""

from __future__ import annotations

import math

import numpy as np

from rdi.checks import choice, number
from rdi.errors import UserError
from rdi.records import Costs, Plain
from rdi.thresholds.calibration import KINDS, Calibration, Mixture
from rdi.thresholds.gaps import EDGE
from rdi.thresholds.policy import Policy, ThresholdPolicy
from rdi.thresholds.rules import Rule
from rdi.thresholds.scores import Score, scored
from rdi.thresholds.search import Group, Search


class BudgetRule(Rule):
    """Thresholds found by a search on the calibration split, under one limit of three: macs, share or accuracy.

    score: of the exits.
    macs: largest mean MACs per image, every head on the way counted.
    share: the same as a share of the MACs of the backbone without exits.
    accuracy: least accuracy of the policy; the cheapest thresholds that reach it are taken.
    data: "clean", "adversarial" (right under every attack there is on the calibration split, MACs averaged over them)
        or "mixed" (both).
    robust: weight of the attacked images in accuracy and mean MACs where they are mixed, in [0, 1]; the clean ones have
        the rest.
    Raises UserError for a limit that cannot be kept.
    """

    def __init__(
        self,
        *,
        score: Score,
        macs: float | None = None,
        share: float | None = None,
        accuracy: float | None = None,
        data: str = "clean",
        robust: float = 0.5,
    ) -> None:
        self.score = score
        if sum(limit is not None for limit in (macs, share, accuracy)) != 1:
            raise UserError("give one of threshold.macs, threshold.share and threshold.accuracy")
        self.macs = None if macs is None else number("threshold.macs", macs, 0, math.inf, open_low=True)
        self.share = None if share is None else number("threshold.share", share, 0, math.inf, open_low=True)
        self.accuracy = None if accuracy is None else number("threshold.accuracy", accuracy, 0, 1, open_low=True)
        self.data = choice("threshold.data", data, KINDS)
        self.robust = number("threshold.robust", robust, 0, 1)
        if self.data != "mixed" and self.robust != 0.5:
            raise UserError(f"threshold.robust={self.robust:g} weighs mixed images: give threshold.data=mixed too")
        self.always_fits = self.accuracy is None and self.data == "clean"

    def check(self, exits: int, costs: Costs) -> None:
        """Raise UserError for a budget below the cost of exit 0."""
        self._check(costs.macs[0], costs)

    def _check(self, least: float, costs: Costs) -> None:
        if (budget := self._budget(costs)) is not None and budget < least * (1 - 1e-9):
            raise UserError(
                f"no image costs less than {math.ceil(least)} MACs (exit 0): give threshold.macs of at least that, or "
                f"threshold.share of at least {math.ceil(1e4 * least / costs.macs_plain) / 1e4:g}"
            )

    def fit(self, calibration: Calibration) -> ThresholdPolicy:
        """Return the thresholds found. Raises UserError where none reach the accuracy asked for."""
        costs = calibration.costs
        search = Search([self._group(part, costs.macs) for part in calibration.of_kind(self.data, self.robust)])
        budget = self._budget(costs)
        if budget is not None:
            found = search.within(budget)
            self._check(found.cost, costs)
        else:
            assert self.accuracy is not None
            found = search.reaching(self.accuracy)
            if found.accuracy < self.accuracy - 1e-9:
                raise UserError(
                    f"no thresholds reach threshold.accuracy={self.accuracy:g} on the calibration split "
                    f"({self.data}): the most accurate give {found.accuracy:.4f} at {found.cost / 1e6:.4g} M MACs"
                )
        sign = -1 if self.score.higher_is_surer else 1
        return ThresholdPolicy(self.score, [sign * min(max(value, -EDGE), EDGE) for value in found.values])

    def facts(self, calibration: Calibration, policy: Policy) -> dict[str, Plain]:
        """Return the limit, and the data that it was fitted on."""
        del policy
        facts: dict[str, Plain] = {"data": self.data}
        if self.data == "mixed":
            facts["robust"] = self.robust
        if self.accuracy is not None:
            return {**facts, "accuracy at least": self.accuracy}
        return {**facts, "mean MACs at most": self._budget(calibration.costs)}

    def _budget(self, costs: Costs) -> float | None:
        return self.macs if self.share is None else self.share * costs.macs_plain

    def _group(self, part: Mixture, macs: tuple[int, ...]) -> Group:
        """The samples of a mixture. macs: per exit, without what gates leave out."""
        sign = -1 if self.score.higher_is_surer else 1
        uncertainty = [sign * scored(self.score, bank.logits)[:, :-1].double().numpy() for bank in part.banks]
        hits = [(bank.logits.argmax(dim=2) == bank.labels[:, None]).numpy() for bank in part.banks]
        costs = [np.asarray(macs) - (0 if bank.skipped is None else bank.skipped.numpy()) for bank in part.banks]
        costs = [np.broadcast_to(one, right.shape) for one, right in zip(costs, hits, strict=True)]
        return Group(np.stack(uncertainty), np.stack(hits), part.weight, np.stack(costs))
