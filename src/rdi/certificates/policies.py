"""Certificates of an exit policy for every image of a ball, from bounds of the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rdi.binomial import wilson
from rdi.certificates.bounds import Bounds
from rdi.certificates.box import Box
from rdi.certificates.scores import score_bounds
from rdi.errors import UserError
from rdi.records import Costs
from rdi.thresholds.ensemble import EnsemblePolicy
from rdi.thresholds.patience import PatiencePolicy
from rdi.thresholds.policy import Policy, ThresholdPolicy
from rdi.thresholds.scores import Score

Frames = Sequence[Box]
"""Boxes of shape NEC that all hold the same logits, each up to a number per sample and exit that no softmax sees."""
CHUNK = 2000
"""Samples that are bounded together: bounds of the entropy take memory for every pair of classes."""


@dataclass(frozen=True)
class Certificates:
    """Guarantees for N images, over every image of the ball around each.

    right: bool_N, the policy's answer is the true class.
    taken: bool_NE, the exits at which the image may leave.
    """

    right: torch.Tensor
    taken: torch.Tensor

    @property
    def last(self) -> torch.Tensor:
        """The last exit at which each image may leave, int64_N."""
        exits = torch.arange(self.taken.shape[1], device=self.taken.device)
        return (self.taken * exits).amax(dim=1)

    def costs(self, macs: Sequence[int]) -> torch.Tensor:
        """Return the largest cost of each image, MACs_N.

        macs: of each exit, ascending.
        """
        return torch.tensor(macs, dtype=torch.double, device=self.taken.device)[self.last]

    def figures(self, wins_NE: torch.Tensor, costs: Costs) -> dict[str, Any]:
        """Return accuracy with its 95 % interval, exit_accuracy, exit_may, mean_macs and saving: fractions, but MACs.

        wins_NE: bool, whether each exit is right on the whole ball.
        """
        accuracy, macs = float(self.right.double().mean()), float(self.costs(costs.macs).mean())
        low, high = wilson(accuracy, len(self.right))
        return {
            "accuracy": accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "exit_accuracy": tuple(wins_NE.double().mean(dim=0).tolist()),
            "exit_may": tuple(self.taken.double().mean(dim=0).tolist()),
            "mean_macs": macs,
            "saving": 1 - macs / costs.macs_plain,
        }


@dataclass(frozen=True)
class _Decisions:
    """surely, may: whether an image that runs on leaves at each exit but the last, bool_N(E-1). answers: see Frames."""

    surely: torch.Tensor
    may: torch.Tensor
    answers: Frames


def certify(policy: Policy, bounds: Bounds, y: torch.Tensor) -> Certificates:
    """Certify a policy on images of labels y_N.

    An image is certified where the true class is the answer at every exit at which it may leave.

    policy: thresholds on a known score, patience, or an ensemble of these.
    bounds: of as many images and exits.
    Raises UserError for a policy that cannot be bounded, as one with randomised thresholds, and for one of another
        number of exits.
    """
    policy.check_exits(bounds.low)
    parts = [_certify(policy, bounds.rows(slice(n, n + CHUNK)), y[n : n + CHUNK]) for n in range(0, len(y), CHUNK)]
    return Certificates(torch.cat([one.right for one in parts]), torch.cat([one.taken for one in parts]))


def certify_each(policies: Sequence[ThresholdPolicy], bounds: Bounds, y: torch.Tensor) -> Iterator[Certificates]:
    """Certify policies that differ in their thresholds alone: bounds of the score are worked out once.

    policies: one or more, with one score.
    bounds, y, errors: as of `certify`.
    """
    for policy in policies:
        policy.check_exits(bounds.low)
    boxes, wins = [], []
    for n in range(0, len(y), CHUNK):
        frames = _frames(bounds.rows(slice(n, n + CHUNK)))
        boxes.append(_score_box(policies[0].score, frames))
        wins.append(_wins(frames, y[n : n + CHUNK]))
    box = Box(torch.cat([one.low for one in boxes]), torch.cat([one.high for one in boxes]))
    for policy in policies:
        yield _certificates(*_beyond(policy, box), torch.cat(wins))


def check(policy: Policy) -> None:
    """Raise UserError for a policy that cannot be bounded."""
    if type(policy) not in _RULES:
        raise UserError(
            f"no certificate for {type(policy).__name__}: where images leave by chance, or by a rule without known "
            "bounds, nothing is sure; choose another policy, as threshold=entropy"
        )
    if isinstance(policy, EnsemblePolicy):
        check(policy.policy)
    if isinstance(policy, ThresholdPolicy):
        score_bounds(policy.score, Box(torch.zeros(2), torch.zeros(2)))


def _certify(policy: Policy, bounds: Bounds, y: torch.Tensor) -> Certificates:
    found = _decide(policy, _frames(bounds))
    return _certificates(found.surely, found.may, _wins(found.answers, y))


def _frames(bounds: Bounds) -> list[Box]:
    return [Box(bounds.low.double(), bounds.high.double()), Box(bounds.below.double(), bounds.above.double())]


def _certificates(surely: torch.Tensor, may: torch.Tensor, wins_NE: torch.Tensor) -> Certificates:
    """surely, may: as of _Decisions. wins_NE: bool, the true class is the answer there for sure."""
    runs_on = torch.ones(len(wins_NE), dtype=torch.bool, device=wins_NE.device)
    taken = []
    for k in range(wins_NE.shape[1] - 1):
        taken.append(runs_on & may[:, k])
        runs_on = runs_on & ~surely[:, k]
    taken_NE = torch.stack([*taken, runs_on], dim=1)
    return Certificates((~taken_NE | wins_NE).all(dim=1), taken_NE)


def _decide(policy: Policy, frames: Frames) -> _Decisions:
    check(policy)
    return _RULES[type(policy)](policy, frames)


def _by_threshold(policy: Policy, frames: Frames) -> _Decisions:
    assert isinstance(policy, ThresholdPolicy)
    return _Decisions(*_beyond(policy, _score_box(policy.score, frames)), frames)


def _score_box(score: Score, frames: Frames) -> Box:
    """Bound the score of every exit but the last, N(E-1), by all frames together."""
    boxes = [score_bounds(score, Box(frame.low[:, :-1], frame.high[:, :-1])) for frame in frames]
    return Box(
        torch.stack([one.low for one in boxes]).amax(dim=0), torch.stack([one.high for one in boxes]).amin(dim=0)
    )


def _beyond(policy: ThresholdPolicy, scores: Box) -> tuple[torch.Tensor, torch.Tensor]:
    """Return surely and may, as of _Decisions, from bounds of the scores."""
    values = scores.low.new_tensor(policy.values)
    if policy.score.higher_is_surer:
        return scores.low > values, scores.high > values
    return scores.high < values, scores.low < values


def _by_patience(policy: Policy, frames: Frames) -> _Decisions:
    assert isinstance(policy, PatiencePolicy)
    possible_NEC = torch.stack([frame.high >= frame.low.amax(dim=2, keepdim=True) for frame in frames]).all(dim=0)
    only_NEC = possible_NEC & (possible_NEC.sum(dim=2, keepdim=True) == 1)
    wait = policy.patience
    none = torch.zeros(len(possible_NEC), wait, dtype=torch.bool, device=possible_NEC.device)

    def agree(classes_NEC: torch.Tensor) -> torch.Tensor:
        rows = [classes_NEC[:, k - wait : k + 1].all(dim=1).any(dim=1) for k in range(wait, policy.exits - 1)]
        return torch.cat([none, torch.stack(rows, dim=1)], dim=1)

    return _Decisions(agree(only_NEC), agree(possible_NEC), frames)


def _by_ensemble(policy: Policy, frames: Frames) -> _Decisions:
    assert isinstance(policy, EnsemblePolicy)
    exits, classes = frames[0].shape[1:]
    weights = frames[0].low.new_tensor(policy.weights or [1.0] * exits)[None, :, None]
    total = weights.cumsum(dim=1)
    width = torch.stack([frame.high.amax(dim=2) - frame.low.amin(dim=2) for frame in frames]).amin(dim=0)
    # the policy takes logarithms of probabilities in float32: no larger than the width and log C
    slack = 64 * 2.0**-24 * (classes + exits + width.cummax(dim=1).values[:, :, None])
    if policy.mean == "geometric":
        # logits will do for their log-probabilities: the mean of these differs by a number per sample and exit
        means = [Box(*((side * weights).cumsum(dim=1) / total for side in (frame.low, frame.high))) for frame in frames]
    else:
        low, high = _log_probabilities(frames)
        means = [Box(*((side + weights.log()).logcumsumexp(dim=1) - total.log() for side in (low, high)))]
    return _decide(policy.policy, [box.wider(slack) for box in means])


def _log_probabilities(frames: Frames) -> tuple[torch.Tensor, torch.Tensor]:
    """Bound the log of every class's probability."""
    diagonal = torch.eye(frames[0].shape[2], dtype=torch.bool, device=frames[0].low.device)
    lows, highs = [], []
    for frame in frames:
        against_low = torch.where(diagonal, frame.high[..., None], frame.low[..., None, :]).logsumexp(dim=-1)
        against_high = torch.where(diagonal, frame.low[..., None], frame.high[..., None, :]).logsumexp(dim=-1)
        lows.append(frame.low - against_high)
        highs.append(frame.high - against_low)
    return torch.stack(lows).amax(dim=0), torch.stack(highs).amin(dim=0)


def _wins(frames: Frames, y: torch.Tensor) -> torch.Tensor:
    """Return bool_NE: the true class has the largest value in the whole box."""
    at = y[:, None, None].expand(-1, frames[0].shape[1], 1)
    margin = torch.stack([frame.high - frame.low.gather(2, at) for frame in frames]).amin(dim=0)
    return (margin.scatter(2, at, -1.0) < 0).all(dim=2)


_RULES: dict[type, Callable[[Policy, Frames], _Decisions]] = {
    ThresholdPolicy: _by_threshold,
    PatiencePolicy: _by_patience,
    EnsemblePolicy: _by_ensemble,
}
