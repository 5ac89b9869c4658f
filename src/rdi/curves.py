"""Accuracy against cost, under each attack and in the worst case: one curve per bank, from stored logits. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from rdi.evaluating import Outcome, outcome, worst_case
from rdi.records import Costs
from rdi.threats import CLEAN, WORST
from rdi.thresholds import Bank, Score, ShareRule, ThresholdPolicy
from rdi.thresholds.rules import geometric_shares

ANYTIME, BUDGETED = "anytime", "budgeted"


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One point of a curve.

    kind: ANYTIME, every image leaves at one exit; BUDGETED, by thresholds.
    bank: "clean", an attack, or "worst", the worst of all attacks per image.
    setting: the exit (anytime) or the geometric ratio of the exit shares (budgeted).
    accuracy: a fraction.
    mean_macs, mean_macs_paper: means over the images of the bank, as they leave under that attack; in the worst case
        each image costs what the costliest attack makes of it.
    images: how many.
    """

    kind: str
    bank: str
    setting: float
    accuracy: float
    mean_macs: float
    mean_macs_paper: float
    images: int


def anytime(banks: Mapping[str, Bank], costs: Costs) -> list[CurvePoint]:
    """Judge each exit alone: its accuracy against the MACs to get there. `banks` are of the same samples."""
    hits = _hits(banks)
    points = []
    for k in range(len(costs.macs)):
        at_exit = {name: outcome(hit, torch.full(hit.shape[:1], k), banks[name].skipped) for name, hit in hits.items()}
        points += _points(ANYTIME, float(k), at_exit, costs)
    return points


def fitted(calibration_NEC: torch.Tensor, score: Score, ratios: Iterable[float]) -> dict[float, ThresholdPolicy]:
    """Fit thresholds on calibration logits for geometric exit shares of each ratio: ratio -> policy."""
    scores = _scores(score, calibration_NEC)
    shares = {float(ratio): geometric_shares(scores.shape[1], ratio) for ratio in ratios}
    return {ratio: ShareRule(score=score, shares=one).fit_scores(scores) for ratio, one in shares.items()}


def budgeted(policies: Mapping[float, ThresholdPolicy], banks: Mapping[str, Bank], costs: Costs) -> list[CurvePoint]:
    """Judge the policies that `fitted` returns on every bank; scores are computed once."""
    hits = _hits(banks)
    score = next(iter(policies.values())).score
    scores = {name: _scores(score, bank.logits) for name, bank in banks.items()}
    points = []
    for ratio, policy in policies.items():
        judged = {
            name: outcome(hits[name], policy.choose_scores(scores[name]), bank.skipped) for name, bank in banks.items()
        }
        points += _points(BUDGETED, ratio, judged, costs)
    return points


def _scores(score: Score, logits_NEC: torch.Tensor) -> torch.Tensor:
    """Scores_NE, exit by exit in one piece of memory: twice as fast to compare."""
    return score(logits_NEC).T.contiguous().T


def _hits(banks: Mapping[str, Bank]) -> dict[str, torch.Tensor]:
    return {name: bank.logits.argmax(dim=2) == bank.labels[:, None] for name, bank in banks.items()}


def _points(kind: str, setting: float, judged: Mapping[str, Outcome], costs: Costs) -> list[CurvePoint]:
    """One point per bank, and one for the worst case over several attacks."""
    found = [
        _point(kind, name, setting, one.correct, [one.macs(rule) for rule in (costs.macs, costs.macs_paper)])
        for name, one in judged.items()
    ]
    attacked = [one for name, one in judged.items() if name != CLEAN]
    if len(attacked) > 1:
        costliest = [
            torch.stack([one.macs(rule) for one in attacked]).amax(dim=0) for rule in (costs.macs, costs.macs_paper)
        ]
        found.append(_point(kind, WORST, setting, worst_case(attacked), costliest))
    return found


def _point(kind: str, bank: str, setting: float, correct_N: torch.Tensor, macs: Sequence[torch.Tensor]) -> CurvePoint:
    honest, paper = (float(one.mean()) for one in macs)
    return CurvePoint(kind, bank, setting, float(correct_N.double().mean()), honest, paper, correct_N.shape[-1])
