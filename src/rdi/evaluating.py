"""From logits, thresholds and costs to numbers. Pure: no files, no models, no devices."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest

from rdi.records import Costs
from rdi.thresholds.policy import Policy
from rdi.thresholds.rules import ShareRule, geometric_shares
from rdi.thresholds.scores import Score


@dataclass(frozen=True)
class Outcome:
    """Result of a policy. correct_N: bool. exits_N: where each sample leaves.

    exit_accuracy: each exit alone.

    For a policy with chance in it, D draws: correct_DN and exits_DN. Each exit alone gives what the policy would answer
    there.
    """

    correct: torch.Tensor
    exits: torch.Tensor
    exit_accuracy: tuple[float, ...]


@dataclass(frozen=True)
class Summary:
    """Means over samples; fields as in records.EvalRecord."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    exit_share: tuple[float, ...]
    mean_macs: float
    mean_macs_paper: float
    saving: float
    saving_paper: float
    efficacy: float


def judge(logits_NEC: torch.Tensor, labels_N: torch.Tensor, policy: Policy) -> Outcome:
    """Judge the deployed policy on the logits of all exits.

    Raises UserError if E differs.

    The draws of a policy with chance in it are the same for every bank: sample n meets the same chance in draw d.
    """
    hits = policy.answers(logits_NEC).argmax(dim=2) == labels_N[:, None]
    exits = [policy.drawn(draw).choose(logits_NEC) for draw in range(policy.draws)]
    return outcome(hits, torch.stack(exits) if policy.draws > 1 else exits[0])


def outcome(hits_NE: torch.Tensor, exits_N: torch.Tensor) -> Outcome:
    """Return whether each exit is right on each sample, and where each sample leaves (_N or _DN) -> Outcome."""
    return Outcome(
        correct=hits_NE.gather(1, torch.atleast_2d(exits_N).T).T.view_as(exits_N),
        exits=exits_N,
        exit_accuracy=tuple(hits_NE.double().mean(dim=0).tolist()),
    )


def summarise(outcome: Outcome, costs: Costs) -> Summary:
    """Average an Outcome of N samples with the costs per exit. saving may be negative: heads on the way cost too."""
    low, high = interval(outcome.correct)
    counts = torch.bincount(outcome.exits.flatten(), minlength=len(costs.macs)).double()
    share = counts / counts.sum()
    mean = float(share @ torch.tensor(costs.macs, dtype=torch.double))
    paper = float(share @ torch.tensor(costs.macs_paper, dtype=torch.double))
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
    """Compute the area under the early-exit curve (Hong et al., ICLR 2021), in [0, 1]; 1: all answers at no cost.

    The curve: share of the samples that have left, against the share of the full network's MACs (heads on the way
    counted) spent by then; straight from exit to exit, from (0, 0).
    """
    x, y = early_exit_curve(shares, macs)
    return sum((x[k + 1] - x[k]) * (y[k + 1] + y[k]) / 2 for k in range(len(x) - 1))


def early_exit_curve(shares: Sequence[float], macs: Sequence[int]) -> tuple[list[float], list[float]]:
    """Return the early-exit curve: cost up to each exit and samples gone by then, shares, from (0, 0) to (1, 1)."""
    return [0.0, *(value / macs[-1] for value in macs)], [0.0, *itertools.accumulate(shares)]


def interval(correct_N: torch.Tensor) -> tuple[float, float]:
    """Compute the 95 % Wilson interval of the share of True values, fractions.

    correct_DN, D draws of chance, counts as N samples, each right by the share of its draws: the mean over draws
    varies less from sample to sample than a single draw does, so the interval is rather too wide.
    """
    samples = correct_N.shape[-1]
    ci = binomtest(round(float(correct_N.double().mean()) * samples), samples).proportion_ci(0.95, method="wilson")
    return float(ci.low), float(ci.high)


def worst_case(outcomes: Iterable[Outcome]) -> torch.Tensor:
    """Return bool_N (_DN, draw by draw): right under every attack.

    outcomes: of the same samples in one order.
    """
    return torch.stack([outcome.correct for outcome in outcomes]).all(dim=0)


@dataclass(frozen=True)
class OperatingPoint:
    """One threshold vector: what it was fitted for and what it gives on test. Accuracies are fractions."""

    ratio: float
    values: tuple[float, ...]
    clean_accuracy: float
    worst_accuracy: float | None
    mean_macs: float
    mean_macs_paper: float


def sweep(
    calibration_NEC: torch.Tensor,
    clean: tuple[torch.Tensor, torch.Tensor],
    attacked: Sequence[tuple[torch.Tensor, torch.Tensor]],
    score: Score,
    costs: Costs,
    ratios: Iterable[float],
) -> list[OperatingPoint]:
    """Fit thresholds on calibration logits for each ratio, and judge them on test banks.

    clean: (logits_NEC, labels_N).
    attacked: the same for each attack, over the same samples; may be empty. mean_macs are those on clean images. Scores
        are computed once, so a point costs a comparison per sample and exit.
    """
    # exit by exit in one piece of memory: twice as fast to compare
    fitted_on = score(calibration_NEC).T.contiguous().T
    banks = [
        (score(logits).T.contiguous().T, logits.argmax(dim=2) == labels[:, None])
        for logits, labels in (clean, *attacked)
    ]
    macs = torch.tensor([costs.macs, costs.macs_paper], dtype=torch.double)
    points = []
    for ratio in ratios:
        policy = ShareRule(score=score, shares=geometric_shares(fitted_on.shape[1], ratio)).fit_scores(fitted_on)
        exits = [policy.choose_scores(scores) for scores, _ in banks]
        correct = [hits.gather(1, k[:, None])[:, 0] for k, (_, hits) in zip(exits, banks, strict=True)]
        share = torch.bincount(exits[0], minlength=len(costs.macs)).double() / len(exits[0])
        mean, paper = (macs @ share).tolist()
        points.append(
            OperatingPoint(
                ratio=float(ratio),
                values=policy.values,
                clean_accuracy=float(correct[0].double().mean()),
                worst_accuracy=float(torch.stack(correct[1:]).all(dim=0).double().mean()) if attacked else None,
                mean_macs=mean,
                mean_macs_paper=paper,
            )
        )
    return points
