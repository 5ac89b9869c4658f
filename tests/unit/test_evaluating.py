"""From logits to numbers, against plain loops over samples."""

from itertools import pairwise

import pytest
import torch
from scipy.stats import norm

from rdi import evaluating
from rdi.evaluating import Outcome, interval, judge, summarise, worst_case
from rdi.records import Costs
from rdi.thresholds import Confidence, Entropy, ShareRule, ThresholdPolicy
from rdi.thresholds.rules import geometric_shares

COSTS = Costs(macs=(10, 30, 60), macs_paper=(8, 20, 40), macs_plain=42, macs_plain_paper=40)


def random_bank(samples=40, exits=3, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        2 * torch.randn(samples, exits, classes, generator=generator),
        torch.randint(classes, (samples,), generator=generator),
    )


def outcome(correct, exits=None):
    return Outcome(torch.tensor(correct), torch.tensor(exits or [0] * len(correct)), (0.0,) * 3)


def test_judging_equals_a_loop_over_samples():
    logits, labels = random_bank()
    policy = ShareRule(score=Entropy()).fit_logits(logits)
    result = judge(logits, labels, policy)
    assert set(result.exits.tolist()) == {0, 1, 2}
    hits = [[int(logits[n, k].argmax()) == int(labels[n]) for k in range(3)] for n in range(40)]
    assert result.exits.tolist() == policy.choose(logits).tolist()
    assert result.correct.tolist() == [hits[n][k] for n, k in enumerate(result.exits.tolist())]
    assert result.exit_accuracy == pytest.approx([sum(hit[k] for hit in hits) / 40 for k in range(3)])


def test_a_summary_equals_a_loop_over_samples():
    logits, labels = random_bank()
    result = judge(logits, labels, ShareRule(score=Confidence(), shares=[0.5, 0.2, 0.3]).fit_logits(logits))
    summary = summarise(result, COSTS)
    exits = result.exits.tolist()
    assert summary.accuracy == pytest.approx(sum(result.correct.tolist()) / 40)
    assert summary.exit_share == pytest.approx([exits.count(k) / 40 for k in range(3)])
    assert summary.exit_share == pytest.approx([0.5, 0.2, 0.3])
    assert summary.mean_macs == pytest.approx(sum(COSTS.macs[k] for k in exits) / 40)
    assert summary.mean_macs_paper == pytest.approx(sum(COSTS.macs_paper[k] for k in exits) / 40)


@pytest.mark.parametrize(
    ("exits", "saving", "saving_paper"),
    [
        ([0, 0, 0], 1 - 10 / 42, 1 - 8 / 40),
        # at the last exit the published rule saves nothing and the honest one pays for the heads on the way
        ([2, 2, 2], 1 - 60 / 42, 0.0),
        ([0, 1, 2], 1 - (100 / 3) / 42, 1 - (68 / 3) / 40),
    ],
)
def test_savings_are_against_the_plain_network_and_may_be_negative(exits, saving, saving_paper):
    summary = summarise(outcome([True, True, False], exits), COSTS)
    assert summary.saving == pytest.approx(saving)
    assert summary.saving_paper == pytest.approx(saving_paper)


def test_exits_that_nobody_uses_have_a_share_of_zero():
    assert summarise(outcome([True, False], [0, 0]), COSTS).exit_share == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(("hits", "samples"), [(0, 10), (10, 10), (7, 10), (450, 1000)])
def test_intervals_are_wilsons(hits, samples):
    z, p = norm.ppf(0.975), hits / samples
    centre = (p + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * (p * (1 - p) / samples + z * z / (4 * samples * samples)) ** 0.5
    low, high = interval(torch.tensor([True] * hits + [False] * (samples - hits)))
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-9)
    summary = summarise(outcome([True] * hits + [False] * (samples - hits)), COSTS)
    assert (summary.accuracy_low, summary.accuracy_high) == (low, high)
    assert low <= summary.accuracy + 1e-12
    assert summary.accuracy <= high + 1e-12


def test_the_worst_case_is_judged_per_sample_not_by_the_worst_average():
    first, second = outcome([True, True, False, False]), outcome([False, True, True, False])
    together = worst_case([first, second])
    assert together.tolist() == [False, True, False, False]
    averages = [float(one.correct.double().mean()) for one in (first, second)]
    assert float(together.double().mean()) == 0.25
    assert min(averages) == 0.5


def test_the_worst_case_of_one_attack_is_that_attack():
    assert worst_case([outcome([True, False, True])]).tolist() == [True, False, True]


@pytest.mark.parametrize("ratio", [0.05, 0.5, 1.0, 2.0, 20.0])
def test_geometric_shares_are_powers_of_the_ratio_and_sum_to_one(ratio):
    shares = geometric_shares(5, ratio)
    assert sum(shares) == pytest.approx(1)
    assert [b / a for a, b in pairwise(shares)] == pytest.approx([ratio] * 4)


def test_policies_with_one_score_are_judged_together_as_each_alone():
    bank = random_bank(50, seed=3)
    policies = [ThresholdPolicy(Entropy(), values) for values in ((0.5, 1.0), (0.3, 1.2), (9.0, 0.1))]
    found = evaluating.accuracies(policies, *bank)
    assert found == [summarise(judge(*bank, one), COSTS).accuracy for one in policies]
    assert len(set(found)) == 3


def test_efficacy_is_the_area_under_the_early_exit_curve():
    # by hand: (0, 0) - (0.25, 0.5) - (1, 1): triangle 0.0625 and trapezium 0.75 * 0.75
    assert evaluating.efficacy([0.5, 0.5], [25, 100]) == pytest.approx(0.0625 + 0.5625)
    assert evaluating.efficacy([0.0, 1.0], [1, 100]) == pytest.approx(0.5 * 0.99)
    assert evaluating.efficacy([1.0, 0.0], [1, 100]) == pytest.approx(0.005 + 0.99)
    assert evaluating.early_exit_curve([0.5, 0.5], [25, 100]) == ([0.0, 0.25, 1.0], [0.0, 0.5, 1.0])
