"""Thresholds drawn at random: where an image near a threshold leaves cannot be known in advance."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rdi.checks import integer, number
from rdi.errors import UserError
from rdi.records import Costs, Plain
from rdi.seeds import derive
from rdi.thresholds.calibration import Calibration
from rdi.thresholds.policy import Policy, ThresholdPolicy
from rdi.thresholds.rules import Rule
from rdi.thresholds.scores import Score

MOST_DRAWS = 10_000
"""Largest number of draws; all of them are held for every image."""


class RandomisedPolicy(Policy):
    """Thresholds drawn anew for every sample, uniform between low and high.

    Draws go on from call to call, so two calls differ; `with_draw` begins again. `values` are the middles.

    score: of the exits.
    low, high: E-1 numbers each, in the unit of the score.
    draws: number of draws that accuracy and cost are averaged over (expectation over transformation, Athalye et al.,
        ICML 2018).
    seed: of the draws; a policy deployed against attackers needs one that they do not know.
    """

    def __init__(
        self, score: Score, low: Sequence[float], high: Sequence[float], draws: int = 1, seed: int = 0
    ) -> None:
        self.score = score
        self.low, self.high = (tuple(float(value) for value in values) for values in (low, high))
        if len(self.low) != len(self.high) or not all(a <= b for a, b in zip(self.low, self.high, strict=True)):
            raise UserError(f"thresholds must lie between low and high, got {list(self.low)} and {list(self.high)}")
        self.values = tuple((a + b) / 2 for a, b in zip(self.low, self.high, strict=True))
        self.exits = len(self.values) + 1
        self.draws = integer("threshold.draws", draws, 1, MOST_DRAWS)
        self.seed = integer("threshold.seed", seed, 0)
        self._generator = torch.Generator().manual_seed(self.seed)

    def choose(self, logits_NEC: torch.Tensor) -> torch.Tensor:
        """Return exit_N, with a draw for every sample and exit."""
        self.check_exits(logits_NEC)
        scores = self.score(logits_NEC)
        leaves = self._beyond(scores[:, :-1], slice(None))
        return torch.cat([leaves, leaves.new_ones(len(leaves), 1)], dim=1).to(torch.uint8).argmax(dim=1)

    def leaves(self, logits_NKC: torch.Tensor) -> torch.Tensor:
        """Return leaves_N, with a draw for every sample."""
        k = logits_NKC.shape[1] - 1
        return self._beyond(self.score(logits_NKC[:, -1:]), slice(k, k + 1))[:, 0]

    def with_draw(self, draw: int) -> RandomisedPolicy:
        """Return the policy with a generator of its own, seeded by `draw`."""
        return RandomisedPolicy(self.score, self.low, self.high, seed=derive(self.seed, "draw", draw))

    def thresholds(self) -> ThresholdPolicy:
        """Return the middles as thresholds."""
        return ThresholdPolicy(self.score, self.values)

    def deterministic(self) -> ThresholdPolicy:
        """Return the policy with the middles as thresholds."""
        return self.thresholds()

    def _beyond(self, scores_NK: torch.Tensor, exits: slice) -> torch.Tensor:
        scores_NK = scores_NK.double()
        low, high = (scores_NK.new_tensor(values[exits]) for values in (self.low, self.high))
        # drawn on the CPU: the same thresholds on every device
        uniform = torch.rand(scores_NK.shape, generator=self._generator).to(scores_NK)
        values = torch.lerp(low, high, uniform)
        return scores_NK > values if self.score.higher_is_surer else scores_NK < values

    def __str__(self) -> str:
        """Say in words what the policy does."""
        pairs = ", ".join(f"{low:.3g}-{high:.3g}" for low, high in zip(self.low, self.high, strict=True))
        return f"thresholds at random in {pairs or 'none'}, mean of {self.draws} draws"


class RandomisedRule(Rule):
    """Another rule's thresholds, randomised.

    rule: gives the middles.
    noise: half width, as a share of the calibration samples whose score lies in between: the threshold at exit k is
        uniform between the scores where `noise` fewer and `noise` more of all samples would leave. A threshold that
        lets nobody or everybody leave stays.
    draws, seed: as of RandomisedPolicy.
    Raises UserError when the other rule gives no thresholds.
    """

    def __init__(self, *, rule: Rule, noise: float, draws: int = 20, seed: int = 0) -> None:
        self.rule = rule
        self.noise = number("threshold.noise", noise, 0, 0.5, open_low=True)
        self.draws = integer("threshold.draws", draws, 1, MOST_DRAWS)
        self.seed = integer("threshold.seed", seed, 0)
        self.data, self.always_fits = rule.data, rule.always_fits

    def check(self, exits: int, costs: Costs) -> None:
        """Raise UserError where the inner rule does."""
        self.rule.check(exits, costs)

    def fit(self, calibration: Calibration) -> RandomisedPolicy:
        """Return random thresholds around those of the inner rule. Raises UserError where it gives none."""
        base = self.rule.fit(calibration)
        if not isinstance(base, ThresholdPolicy):
            raise UserError(
                f"threshold.rule must give thresholds to randomise, {type(self.rule).__name__} does not: "
                "choose for example threshold@threshold.rule=entropy"
            )
        scores = base.score(calibration.logits)[:, :-1].double()
        pairs = [self._around(scores[:, k], value, base.score) for k, value in enumerate(base.values)]
        low, high = ([pair[side] for pair in pairs] for side in (0, 1))
        return RandomisedPolicy(base.score, low, high, draws=self.draws, seed=self.seed)

    def facts(self, calibration: Calibration, policy: Policy) -> dict[str, Plain]:
        """Return noise and draws; the inner rule's promises hold for its own thresholds alone."""
        return {"noise": self.noise, "draws": self.draws}

    def _around(self, score_N: torch.Tensor, value: float, score: Score) -> tuple[float, float]:
        below = float((score_N < value).double().mean())
        leaving = float((score_N > value).double().mean()) if score.higher_is_surer else below
        if not 0 < leaving < 1:
            return value, value
        low, high = (min(max(below + side * self.noise, 0), 1) for side in (-1, 1))
        return min(float(score_N.quantile(low)), value), max(float(score_N.quantile(high)), value)
