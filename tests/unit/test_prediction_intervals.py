"""What calibration promises: intervals by hand, honest accuracy, and how often they hold."""

import pytest
import torch
from scipy.stats import binomtest, norm

from helpers.calibration import COSTS, calibration, graded
from rdi.evaluating import judge, summarise
from rdi.prediction_intervals import prediction_intervals
from rdi.thresholds import BudgetRule, Calibration, Entropy, FixedRule, RandomisedRule, ShareRule


def test_the_interval_of_the_cost_is_for_a_mean_of_so_many_new_images():
    data = calibration(500)
    rule = ShareRule(score=Entropy())
    policy = rule.fit(data)
    macs = torch.tensor(COSTS.macs).double()[policy.choose(data.logits)]
    found = prediction_intervals(rule, policy, data, {"clean": 250})["clean"]
    half = norm.ppf(0.975) * float(macs.std(correction=0)) * (1 / 500 + 1 / 250) ** 0.5
    mean = float(macs.mean())
    assert (found.mean_macs, found.mean_macs_low, found.mean_macs_high) == pytest.approx(
        (mean, mean - half, mean + half)
    )
    assert (found.samples, found.images, found.folds) == (500, 250, 5)


def test_the_accuracy_is_judged_on_samples_that_the_thresholds_have_not_seen():
    data = calibration(100)
    rule = FixedRule(score=Entropy(), values=[0.6, 0.6])
    policy = rule.fit(data)
    judged = judge(data.logits, data.labels, policy).correct.double().mean()
    # fixed thresholds are the same in every fold
    assert prediction_intervals(rule, policy, data, {"clean": 100})["clean"].accuracy == pytest.approx(float(judged))
    noise = Calibration(
        torch.randn(200, 3, 4, generator=torch.Generator().manual_seed(1)), data.labels.repeat(2), COSTS
    )
    rule = BudgetRule(score=Entropy(), share=0.5)
    policy = rule.fit(noise)
    seen = float(judge(noise.logits, noise.labels, policy).correct.double().mean())
    assert prediction_intervals(rule, policy, noise, {"clean": 100})["clean"].accuracy < seen, (
        "the search has fitted noise"
    )


def test_a_rule_that_cannot_be_fitted_on_a_part_is_judged_where_it_was_fitted():
    data = calibration(120)
    best = max(
        float(judge(data.logits, data.labels, BudgetRule(score=Entropy(), macs=60).fit(data)).correct.double().mean()),
        0,
    )
    rule = BudgetRule(score=Entropy(), accuracy=best)
    found = prediction_intervals(rule, rule.fit(data), data, {"clean": 100})["clean"]
    assert found.folds == 1
    assert found.accuracy >= best - 1e-9


def test_every_bank_and_every_draw_counts():
    data = calibration(300, attacked=2)
    rule = RandomisedRule(rule=ShareRule(score=Entropy()), noise=0.1, draws=3)
    found = prediction_intervals(rule, rule.fit(data), data, {"clean": 100, "attack0": 50, "attack1": 50})
    assert list(found) == ["clean", "attack0", "attack1"]
    assert found["attack0"].accuracy < found["clean"].accuracy
    assert found["attack0"].images == 50


def test_a_few_images_for_a_dry_run_are_enough():
    data = calibration(4)
    rule = ShareRule(score=Entropy())
    assert prediction_intervals(rule, rule.fit(data), data, {"clean": 10})["clean"].folds == 1


RULES = {"budget": (BudgetRule(score=Entropy(), share=0.6), 12), "shares": (ShareRule(score=Entropy()), 100)}


@pytest.mark.parametrize(("rule", "draws"), RULES.values(), ids=RULES)
def test_most_test_splits_lie_in_the_interval(rule, draws):
    """Cost and accuracy are kept on test within the stated interval, in 95 % of the draws of both splits."""
    inside = {"macs": 0, "accuracy": 0}
    for seed in range(draws):
        data = calibration(300, seed=1000 + seed)
        policy = rule.fit(data)
        found = prediction_intervals(rule, policy, data, {"clean": 300})["clean"]
        test = graded(300, seed=5000 + seed)
        result = summarise(judge(test.logits, test.labels, policy), COSTS)
        inside["macs"] += found.mean_macs_low <= result.mean_macs <= found.mean_macs_high
        inside["accuracy"] += found.accuracy_low <= result.accuracy <= found.accuracy_high
    for count in inside.values():
        assert binomtest(count, draws, 0.95, alternative="less").pvalue > 0.01, inside
