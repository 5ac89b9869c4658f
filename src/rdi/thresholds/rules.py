"""Rules: fit a policy on the calibration split, or give one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from rdi.checks import number
from rdi.errors import UserError
from rdi.records import Costs, Plain
from rdi.thresholds.calibration import Calibration
from rdi.thresholds.gaps import EDGE, middle
from rdi.thresholds.policy import Policy, ThresholdPolicy
from rdi.thresholds.scores import Score, scored

NOT_CERTIFIED = "not certified"
"""The fact that says why a requested guarantee could not be given; whoever fits a rule tells the user."""


class Rule(ABC):
    """Maps what is known of the calibration split to a policy. Authors write `fit`.

    data: what it is fitted on, of calibration.KINDS.
    always_fits: whether clean logits of any network that passes `check` do; a training may end with such a rule only.
    """

    data: str = "clean"
    always_fits: bool = True

    def check(self, exits: int, costs: Costs) -> None:
        """Raise UserError when the options cannot suit a network of so many exits and these costs."""
        del exits, costs

    @abstractmethod
    def fit(self, calibration: Calibration) -> Policy:
        """Fit the policy to deploy. Raises UserError when there is none as asked for."""

    def facts(self, calibration: Calibration, policy: Policy) -> dict[str, Plain]:
        """Return what the record should say of the fit beside the policy itself: limits, guarantees, sizes."""
        del calibration, policy
        return {}


class ShareRule(Rule):
    """Each exit takes a given share of the calibration samples (Huang et al. 2018, as the paper does).

    At exit k the most certain floor(share_k * N) of the samples still running leave; the first one that stays keeps its
    ties. The threshold is halfway between its score and the next more certain one of the calibration split; where
    nobody or everybody leaves it is beyond every score. Then threshold_k becomes scale_k * threshold_k + offset_k, the
    paper's manual adjustment.

    score: of the exits.
    shares: E numbers in [0, 1] that sum to 1, default 1/E each.
    offsets, scales: E-1 numbers or one for all.
    Raises UserError for lists of another length.
    """

    def __init__(
        self,
        *,
        score: Score,
        shares: Sequence[float] | None = None,
        offsets: Sequence[float] | float = 0.0,
        scales: Sequence[float] | float = 1.0,
    ) -> None:
        self.score = score
        self.shares = None if shares is None else [number("threshold.shares", share, 0, 1) for share in shares]
        if self.shares is not None and abs(sum(self.shares) - 1) > 1e-6:
            raise UserError(f"threshold.shares must sum to 1, got {sum(self.shares):g}")
        self.offsets = offsets
        self.scales = scales

    def check(self, exits: int, costs: Costs) -> None:
        """Raise UserError for lists of another number of exits."""
        if self.shares is not None and len(self.shares) != exits:
            raise UserError(f"threshold.shares must list {exits} shares, one per exit, got {len(self.shares)}")
        _per_exit("threshold.offsets", self.offsets, exits - 1)
        _per_exit("threshold.scales", self.scales, exits - 1)

    def fit(self, calibration: Calibration) -> ThresholdPolicy:
        """Return the thresholds, fitted on the clean logits."""
        return self.fit_logits(calibration.logits)

    def fit_logits(self, logits_NEC: torch.Tensor) -> ThresholdPolicy:
        """Fit on clean logits alone: this rule needs no labels and no costs."""
        return self.fit_scores(scored(self.score, logits_NEC))

    def fit_scores(self, scores_NE: torch.Tensor) -> ThresholdPolicy:
        """Fit on the clean scores of all exits."""
        samples, exits = scores_NE.shape
        shares = self.shares or [1 / exits] * exits
        if len(shares) != exits:
            raise UserError(f"threshold.shares must list {exits} shares, one per exit, got {len(shares)}")
        offsets = _per_exit("threshold.offsets", self.offsets, exits - 1)
        scales = _per_exit("threshold.scales", self.scales, exits - 1)
        surest_first = -1.0 if self.score.higher_is_surer else 1.0
        # in numpy, whose calls on so few numbers cost a third of torch's
        scores = (scores_NE * surest_first).T.contiguous().cpu().numpy()
        running = np.arange(samples)
        values = []
        for k in range(exits - 1):
            mine = scores[k][running]
            # 1e-9: floor(N * (1/E)) must not lose a sample to rounding
            leaving = int(samples * shares[k] + 1e-9)
            # nobody stays: every later sample may leave here too
            edge = float(np.partition(mine, leaving)[leaving]) if leaving < len(mine) else np.inf
            value = surest_first * middle(scores[k], edge)
            values.append(value if abs(value) == EDGE else scales[k] * value + offsets[k])
            running = running[mine >= edge]
        return ThresholdPolicy(self.score, values)


class FixedRule(Rule):
    """Thresholds given by hand; fitting only checks their number.

    score: of the exits.
    values: E-1 numbers in the unit of the score.
    """

    def __init__(self, *, score: Score, values: Sequence[float]) -> None:
        self.score = score
        self.values = list(values)

    def check(self, exits: int, costs: Costs) -> None:
        """Raise UserError when there is not one value per exit but the last."""
        _per_exit("threshold.values", self.values, exits - 1)

    def fit(self, calibration: Calibration) -> ThresholdPolicy:
        """Return the thresholds. Raises UserError when there is not one value per exit but the last."""
        exits = calibration.logits.shape[1]
        return ThresholdPolicy(self.score, _per_exit("threshold.values", self.values, exits - 1))


def geometric_shares(exits: int, ratio: float) -> list[float]:
    """Return exit shares proportional to ratio**k, k = 0..E-1: a small ratio lets most leave early.

    exits: E.
    ratio: > 0.
    Source: Huang et al., MSDNet, ICLR 2018, section 4.2.
    """
    powers = np.power(float(ratio), np.arange(exits))
    return [float(share) for share in powers / powers.sum()]


def _per_exit(name: str, values: Sequence[float] | float, count: int) -> list[float]:
    if isinstance(values, int | float):
        return [float(values)] * count
    if len(values) != count:
        raise UserError(f"{name} must list {count} numbers, one per exit but the last, got {len(values)}")
    return [float(value) for value in values]
