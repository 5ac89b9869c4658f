"""Certified risk: the p-value by hand, and the promise over many draws of the calibration split."""

import re

import pytest
import torch
from scipy.stats import binomtest

from helpers.calibration import COSTS, calibration, graded
from rdi.errors import UserError
from rdi.evaluating import judge, summarise
from rdi.prediction_intervals import prediction_intervals
from rdi.thresholds import Calibration, Confidence, EnsembleRule, Entropy, RiskRule, ShareRule


def rule(**options):
    return RiskRule(**{"score": Entropy(), "alpha": 0.05, **options})


def drop(logits, labels, policy):
    right = judge(logits, labels, policy).correct
    return float(((logits[:, -1].argmax(1) == labels) & ~right).double().mean())


@pytest.mark.parametrize("score", [Entropy(), Confidence()], ids=["entropy", "confidence"])
def test_the_facts_are_those_of_a_binomial_test(score):
    data = calibration(1000)
    certified = rule(score=score)
    policy = certified.fit(data)
    facts = certified.facts(data, policy)
    assert facts["tested_on"] == 700
    test = binomtest(facts["losses"], 700, 0.05, alternative="less")
    assert facts["p_value"] == pytest.approx(test.pvalue)
    assert facts["p_value"] <= 0.1
    saved = summarise(judge(data.logits, data.labels, policy), COSTS)
    assert saved.exit_share[-1] < 0.95, "somebody leaves early"


def test_a_larger_risk_allowed_never_costs_more():
    data = calibration(2000)
    costs = [
        summarise(judge(data.logits, data.labels, rule(alpha=alpha).fit(data)), COSTS).mean_macs
        for alpha in (0.005, 0.02, 0.05, 0.1, 0.3)
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0]


@pytest.mark.parametrize("risk", ["drop", "error"])
def test_the_promise_is_kept_in_nearly_all_draws_of_the_calibration_split(risk):
    population = graded(5_000, seed=9)
    alpha, delta, broken, draws = {"drop": 0.05, "error": 0.38}[risk], 0.2, 0, 40
    certified = rule(alpha=alpha, delta=delta, risk=risk)
    for seed in range(draws):
        rows = torch.randperm(5_000, generator=torch.Generator().manual_seed(seed))[:400].sort().values
        policy = certified.fit(Calibration(population.logits[rows], population.labels[rows], COSTS))
        wrong = float((~judge(population.logits, population.labels, policy).correct).double().mean())
        broken += (drop(population.logits, population.labels, policy) if risk == "drop" else wrong) > alpha
    assert binomtest(broken, draws, delta, alternative="greater").pvalue > 0.01
    naive = ShareRule(score=Entropy(), shares=[0.6, 0.3, 0.1]).fit_logits(population.logits)
    assert drop(population.logits, population.labels, naive) > 0.05, "the promise could be broken"


def test_when_nothing_can_be_certified_nobody_leaves_early_and_the_facts_say_so():
    data = calibration(60)
    cautious = rule(alpha=1e-6)
    policy = cautious.fit(data)
    assert set(policy.choose(data.logits).tolist()) == {2}
    # 0.999999 ** n <= 0.1
    assert cautious.facts(data, policy)["not certified"] == (
        "these data certify no early exit, so every image runs the full network; alpha=1e-06 at delta=0.1: without a "
        "single loss it takes 2302584 calibration images to test on, there are 42: hold out more, "
        "data.calibration=..., or raise threshold.alpha"
    )
    with pytest.raises(UserError, match=r"even the full network .* raise threshold\.alpha; without a single loss"):
        rule(alpha=0.01, risk="error").fit(data)


def test_attacked_images_are_lost_under_any_attack():
    data = calibration(1000, attacked=2)
    certified = rule(alpha=0.1, data="adversarial", design=0.5)
    policy = certified.fit(data)
    facts = certified.facts(data, policy)
    _, test = certified._partition(data)
    full = [bank.logits[:, -1].argmax(1) == bank.labels for bank in test]
    kept = [judge(bank.logits, bank.labels, policy).correct for bank in test]
    assert facts["losses"] == int((full[0] & full[1] & ~(kept[0] & kept[1])).sum())
    with pytest.raises(UserError, match=r"threshold\.data=adversarial needs"):
        certified.fit(calibration(100))


def test_an_ensemble_is_certified_by_its_own_answers():
    data = calibration(1000)
    together = EnsembleRule(rule=rule())
    policy = together.fit(data)
    assert together.facts(data, policy)["p_value"] <= 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0}, r"threshold\.alpha must be in \(0, 1\]"),
        ({"delta": 2}, r"threshold\.delta must be in \(0, 1\]"),
        ({"risk": "loss"}, r"threshold\.risk must be one of drop, error"),
        ({"data": "mixed"}, r"threshold\.data must be one of clean, adversarial"),
        ({"design": 1}, r"threshold\.design must be in \[0\.01, 0\.99\]"),
        ({"seed": 1.5}, r"threshold\.seed must be a whole number"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        rule(**options)


def test_only_a_clean_drop_always_fits():
    assert rule().always_fits
    assert not rule(risk="error").always_fits
    assert not rule(data="adversarial").always_fits


def blind():
    """Enough images, but exits before the last that are always wrong."""
    data = calibration(1000)
    logits = data.logits.clone()
    logits[:, :2] = 9 * torch.nn.functional.one_hot((data.labels + 1) % 4, 4)[:, None]
    logits[:, :2] += 0.1 * data.logits[:, :2]
    return Calibration(logits, data.labels, COSTS)


def test_losses_that_forbid_early_exits_are_counted():
    data, certified = blind(), rule(alpha=0.005)
    policy = certified.fit(data)
    assert set(policy.choose(data.logits).tolist()) == {2}
    reason = certified.facts(data, policy)["not certified"]
    found = re.search(
        r"allow (\d+) losses among 700 calibration .* thresholds lose (\d+): raise threshold\.alpha", reason
    )
    allowed, lost = map(int, found.groups())
    assert allowed < lost
    assert binomtest(allowed, 700, 0.005, alternative="less").pvalue <= 0.1
    assert binomtest(allowed + 1, 700, 0.005, alternative="less").pvalue > 0.1


def test_fitting_on_folds_says_nothing(said):
    """The facts are for the one who fits; the folds that only estimate say nothing."""
    data, certified = blind(), rule(alpha=0.005)
    prediction_intervals(certified, certified.fit(data), data, {"clean": 100})
    assert said == []


def test_thresholds_that_are_certified_are_not_doubted():
    data = calibration(1000)
    assert "not certified" not in rule().facts(data, rule().fit(data))
