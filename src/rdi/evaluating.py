"""Evaluate stored logits under exit policies: accuracy, exit shares, costs and intervals. Pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from rdi.binomial import wilson
from rdi.records import Costs
from rdi.thresholds.policy import Policy, ThresholdPolicy

PART = 64 * 2**20
"""Bytes of logits that are judged at once."""


@dataclass(frozen=True)
class Outcome:
    """Result of a policy on N samples.

    correct: bool_N, or bool_DN over D draws of random thresholds.
    exits: int64_N or _DN, where each sample leaves.
    exit_accuracy: of each exit alone, with the policy's answer there; fractions.
    skipped: int64_N or _DN, MACs that gates left out up to there; None of a network without gates.
    """

    correct: torch.Tensor
    exits: torch.Tensor
    exit_accuracy: tuple[float, ...]
    skipped: torch.Tensor | None = None

    def macs(self, per_exit: Sequence[int]) -> torch.Tensor:
        """Return what each sample costs, double_N or _DN. per_exit: MACs of an image whose gates are all open."""
        whole = torch.tensor(per_exit, dtype=torch.double)[self.exits]
        return whole if self.skipped is None else whole - self.skipped


@dataclass(frozen=True)
class Summary:
    """Means over samples; accuracies, shares and savings are fractions.

    accuracy: with its 95 % Wilson interval accuracy_low, accuracy_high.
    exit_share: of the samples, where they leave.
    mean_macs: multiply-adds per sample, every head on the way counted.
    mean_macs_paper: by the published rule.
    saving: of the MACs of the backbone without early exits; negative where the heads cost more than is saved.
    saving_paper: of the MACs to the last exit, by the published rule.
    efficacy: area under the early-exit curve, in [0, 1].
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    exit_share: tuple[float, ...]
    mean_macs: float
    mean_macs_paper: float
    saving: float
    saving_paper: float
    efficacy: float


def judge(
    logits_NEC: torch.Tensor, labels_N: torch.Tensor, policy: Policy, skipped_NE: torch.Tensor | None = None
) -> Outcome:
    """Judge a policy on logits_NEC and labels_N.

    policy: of E exits; randomised thresholds are drawn policy.draws times, the same for every bank.
    skipped_NE: MACs that gates left out up to each exit; None of a network without gates.
    Raises UserError if E differs.
    """
    if policy.draws == 1 and (count := -(-logits_NEC.nbytes // PART)) > 1:
        # what scores compute is as large as the logits, several times over
        pairs = zip(logits_NEC.chunk(count), labels_N.chunk(count), strict=True)
        parts = [(policy.answers(few).argmax(dim=2) == y[:, None], policy.choose(few)) for few, y in pairs]
        return outcome(torch.cat([hits for hits, _ in parts]), torch.cat([exits for _, exits in parts]), skipped_NE)
    hits = policy.answers(logits_NEC).argmax(dim=2) == labels_N[:, None]
    exits = [policy.with_draw(draw).choose(logits_NEC) for draw in range(policy.draws)]
    return outcome(hits, torch.stack(exits) if policy.draws > 1 else exits[0], skipped_NE)


def outcome(hits_NE: torch.Tensor, exits_N: torch.Tensor, skipped_NE: torch.Tensor | None = None) -> Outcome:
    """Build an Outcome.

    hits_NE: bool, whether each exit is right.
    exits_N: where each sample leaves, _N or _DN.
    skipped_NE: as of `judge`.
    """

    def taken(values_NE: torch.Tensor) -> torch.Tensor:
        return values_NE.gather(1, torch.atleast_2d(exits_N).T).T.view_as(exits_N)

    return Outcome(
        correct=taken(hits_NE),
        exits=exits_N,
        exit_accuracy=tuple(hits_NE.double().mean(dim=0).tolist()),
        skipped=None if skipped_NE is None else taken(skipped_NE),
    )


def summarise(outcome: Outcome, costs: Costs) -> Summary:
    """Average an Outcome over its samples.

    outcome: of N samples.
    costs: MACs per exit.
    """
    low, high = interval(outcome.correct)
    counts = torch.bincount(outcome.exits.flatten(), minlength=len(costs.macs)).double()
    share = counts / counts.sum()
    # what gates leave out are convolutions, which both rules count
    left = 0.0 if outcome.skipped is None else float(outcome.skipped.double().mean())
    mean = float(share @ torch.tensor(costs.macs, dtype=torch.double)) - left
    paper = float(share @ torch.tensor(costs.macs_paper, dtype=torch.double)) - left
    return Summary(
        accuracy=float(outcome.correct.double().mean()),
        accuracy_low=low,
        accuracy_high=high,
        exit_share=tuple(share.tolist()),
        mean_macs=mean,
        mean_macs_paper=paper,
        saving=1 - mean / costs.macs_plain,
        saving_paper=1 - paper / costs.macs_plain_paper,
        efficacy=efficacy(share.tolist(), costs.macs),
    )


def efficacy(shares: Sequence[float], macs: Sequence[int]) -> float:
    """Compute the area under the early-exit curve, in [0, 1]; 1: all answers at no cost.

    The curve is piecewise linear from (0, 0): share of the samples that have left, against the share of the full
    network's MACs spent by then.

    shares: of the samples that leave at each of the E exits.
    macs: up to each exit, every head on the way counted.
    Source: Hong et al., ICLR 2021.
    """
    x, y = early_exit_curve(shares, macs)
    return sum((x[k + 1] - x[k]) * (y[k + 1] + y[k]) / 2 for k in range(len(x) - 1))


def early_exit_curve(shares: Sequence[float], macs: Sequence[int]) -> tuple[list[float], list[float]]:
    """Return the points of the early-exit curve, from (0, 0) to (1, 1).

    shares: of the samples that leave at each of the E exits.
    macs: up to each exit.
    Returns (cost up to each exit, samples gone by then), both as shares.
    """
    return [0.0, *(value / macs[-1] for value in macs)], [0.0, *itertools.accumulate(shares)]


def interval(correct_N: torch.Tensor) -> tuple[float, float]:
    """Compute the 95 % Wilson interval of the share of True values, fractions.

    correct_N: bool; of _DN, D draws, every sample is right by the share of its draws. The mean over draws varies less
        from sample to sample than a single draw does, so the interval is then conservative.
    """
    samples = correct_N.shape[-1]
    return wilson(round(float(correct_N.double().mean()) * samples) / samples, samples)


def worst_case(outcomes: Iterable[Outcome]) -> torch.Tensor:
    """Return bool_N (_DN, draw by draw): right under every attack.

    outcomes: of the same samples in one order.
    """
    return torch.stack([outcome.correct for outcome in outcomes]).all(dim=0)


def accuracies(policies: Sequence[ThresholdPolicy], logits_NEC: torch.Tensor, labels_N: torch.Tensor) -> list[float]:
    """Judge policies that differ in their thresholds alone: the accuracy of each; scores are worked out once.

    policies: one or more, with one score.
    """
    # exit by exit in one piece of memory: twice as fast to compare
    scores, hits = policies[0].score(logits_NEC).T.contiguous().T, logits_NEC.argmax(dim=2) == labels_N[:, None]
    return [float(hits.gather(1, one.choose_scores(scores)[:, None]).double().mean()) for one in policies]
