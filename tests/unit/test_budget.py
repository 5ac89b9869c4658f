"""Thresholds under a limit: the search against exhaustive enumeration, the rule against its limit."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.calibration import COSTS, MACS, calibration, graded
from rdi.errors import UserError
from rdi.evaluating import judge, summarise
from rdi.records import Costs
from rdi.thresholds import BudgetRule, Calibration, Confidence, Entropy, Margin
from rdi.thresholds.rules import ShareRule, geometric_shares
from rdi.thresholds.search import Group, Search


def group(banks, weight=1.0, gated=False):
    uncertainty = np.stack([Entropy()(bank.logits)[:, :-1].double().numpy() for bank in banks])
    hits = np.stack([(bank.logits.argmax(2) == bank.labels[:, None]).numpy() for bank in banks])
    costs = np.broadcast_to(MACS, hits.shape)
    if gated:  # up to a third of the work is left out, more of it for sure images
        costs = costs * (0.67 + 0.33 * uncertainty.mean(axis=2, keepdims=True) / np.log(4))
    return Group(uncertainty, hits, weight, costs)


def by_hand(groups, values):
    """Accuracy and mean cost of thresholds, sample by sample."""
    accuracy = cost = 0.0
    for one in groups:
        attacks, samples = one.hits.shape[:2]
        for n in range(samples):
            right = True
            for b in range(attacks):
                below = [k for k, value in enumerate(values) if one.uncertainty[b, n, k] < value]
                end = below[0] if below else len(values)
                right &= bool(one.hits[b, n, end])
                cost += one.weight * one.costs[b, n, end] / (attacks * samples)
            accuracy += one.weight * right / samples
    return accuracy, cost


MIXTURES = {
    "clean": [group([graded(30)])],
    "gated": [group([graded(30)], gated=True)],
    "two attacks": [group([graded(30), graded(30, seed=1)])],
    "mixed": [group([graded(30)], 0.5), group([graded(20, seed=k) for k in (1, 2, 3)], 0.5)],
}


@pytest.mark.parametrize("groups", MIXTURES.values(), ids=MIXTURES)
def test_a_line_says_what_every_threshold_of_an_exit_would_give(groups):
    search = Search(groups)
    for chosen in ([0, 0], [5, 9], [9, 3], [len(search._candidates[0]) - 1, 4]):
        for k in range(2):
            line = search._line(chosen, k)
            for index, threshold in enumerate(search._candidates[k]):
                values = [float(search._candidates[j][chosen[j]]) for j in range(2)]
                values[k] = threshold
                assert (line.accuracy[index], line.cost[index]) == pytest.approx(by_hand(groups, values))


@pytest.mark.parametrize("groups", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("budget", [15, 25, 40, 60])
def test_the_search_is_as_good_as_trying_all_thresholds(groups, budget):
    search = Search(groups)
    found = search.within(budget)
    assert (found.accuracy, found.cost) == pytest.approx(by_hand(groups, found.values))
    assert found.cost <= budget + 1e-9
    lines = [search._here(list(chosen)) for chosen in itertools.product(*(range(len(c)) for c in search._candidates))]
    every = [(float(line.accuracy[0]), float(line.cost[0])) for line in lines]
    best = max(accuracy for accuracy, cost in every if cost <= budget)
    assert found.accuracy >= best - 0.04, "a local optimum may miss a sample of the 30"
    cheapest = search.reaching(found.accuracy)
    assert cheapest.accuracy >= found.accuracy - 1e-9
    assert cheapest.cost <= 1.2 * min(cost for accuracy, cost in every if accuracy >= found.accuracy - 1e-9)


@pytest.mark.parametrize("score", [Entropy(), Confidence(), Margin()], ids=["entropy", "confidence", "margin"])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9, 3.0])
def test_a_budget_is_kept_on_the_samples_it_was_fitted_on(score, share):
    data = calibration()
    policy = BudgetRule(score=score, share=share).fit(data)
    result = summarise(judge(data.logits, data.labels, policy), COSTS)
    assert result.mean_macs <= 50 * share + 1e-6
    same = BudgetRule(score=score, macs=50 * share).fit(data)
    assert same.values == policy.values


@pytest.mark.parametrize("data", ["clean", "adversarial"])
def test_a_budget_is_kept_with_what_each_image_s_gates_left_out(data):
    """Sure images leave early, and their gates leave out more than the mean: means per exit would miss the budget."""
    given = calibration(attacked=1)
    banks = {name: gated(bank) for name, bank in given.banks().items()}
    given = replace(given, skipped=banks.pop("clean").skipped, attacked=banks)
    for budget in (10.0, 15.0, 25.0):
        policy = BudgetRule(score=Entropy(), macs=budget, data=data).fit(given)
        (bank,) = [given.clean] if data == "clean" else given.attacked.values()
        spent = summarise(judge(bank.logits, bank.labels, policy, bank.skipped), COSTS).mean_macs
        assert budget - 1 <= spent <= budget + 1e-6, "and spent, as far as it goes"
    with pytest.raises(UserError, match="no image costs less than"):
        BudgetRule(score=Entropy(), macs=4.0, data=data).fit(given)


def gated(bank):
    """A bank whose gates left out up to half of the MACs, of images that exits are sure of."""
    sure = 1 - Entropy()(bank.logits).mean(dim=1, keepdim=True) / math.log(4)
    return replace(bank, skipped=(0.5 * sure * torch.tensor(MACS)).round().long())


def test_a_budget_beats_geometric_shares_of_the_same_cost():
    data, test = calibration(2000), graded(4000, seed=77)
    budget = BudgetRule(score=Entropy(), macs=25.0).fit(data)
    fits = [
        ShareRule(score=Entropy(), shares=geometric_shares(3, ratio)).fit(data) for ratio in np.logspace(-1.2, 1.2, 81)
    ]
    of = {policy: summarise(judge(data.logits, data.labels, policy), COSTS) for policy in (budget, *fits)}
    affordable = [policy for policy in fits if of[policy].mean_macs <= 25]
    rival = max(affordable, key=lambda policy: of[policy].accuracy)
    assert of[budget].accuracy >= of[rival].accuracy
    # and not only where it was fitted
    mine, theirs = (summarise(judge(test.logits, test.labels, one), COSTS) for one in (budget, rival))
    assert mine.accuracy >= theirs.accuracy - 0.01


def test_an_accuracy_is_reached_at_the_least_cost():
    data = calibration()
    policies = {floor: BudgetRule(score=Entropy(), accuracy=floor).fit(data) for floor in (0.6, 0.65, 0.7)}
    results = {floor: summarise(judge(data.logits, data.labels, policy), COSTS) for floor, policy in policies.items()}
    assert all(result.accuracy >= floor for floor, result in results.items())
    costs = [result.mean_macs for result in results.values()]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


@pytest.mark.parametrize("kind", ["adversarial", "mixed"])
def test_attacked_images_count_as_right_only_under_every_attack(kind):
    data = calibration(attacked=2)
    policy = BudgetRule(score=Entropy(), share=0.6, data=kind).fit(data)
    outcomes = {name: judge(bank.logits, bank.labels, policy) for name, bank in data.banks().items()}
    macs = {name: summarise(one, COSTS).mean_macs for name, one in outcomes.items()}
    attacked = (macs["attack0"] + macs["attack1"]) / 2
    spent = attacked if kind == "adversarial" else (macs["clean"] + attacked) / 2
    assert spent <= 30 + 1e-6
    both = outcomes["attack0"].correct & outcomes["attack1"].correct
    clean = BudgetRule(score=Entropy(), share=0.6).fit(data)
    other = [judge(data.attacked[name].logits, data.labels, clean).correct for name in ("attack0", "attack1")]
    if kind == "adversarial":
        assert float(both.double().mean()) >= float((other[0] & other[1]).double().mean()) - 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"give one of threshold\.macs, threshold\.share and threshold\.accuracy"),
        ({"macs": 5, "share": 0.5}, "give one of"),
        ({"macs": 0}, r"threshold\.macs must be in \(0, inf\)"),
        ({"share": -1}, r"threshold\.share must be in \(0, inf\)"),
        ({"accuracy": 1.5}, r"threshold\.accuracy must be in \(0, 1\]"),
        ({"share": "x"}, r"threshold\.share must be a number"),
        ({"share": 0.5, "data": "dirty"}, r"threshold\.data must be one of clean, adversarial, mixed"),
    ],
)
def test_limits_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        BudgetRule(score=Entropy(), **options)


def test_limits_that_cannot_be_kept_are_refused_with_what_can_be():
    data = calibration()
    for rule in (BudgetRule(score=Entropy(), macs=9.5), BudgetRule(score=Entropy(), share=0.19)):
        with pytest.raises(UserError, match=r"no image costs less than 10 MACs .*at least 0\.2"):
            rule.check(3, COSTS)
        with pytest.raises(UserError, match="no image costs less than"):
            rule.fit(data)
    best = max(float((data.logits[:, k].argmax(1) == data.labels).double().mean()) for k in range(3))
    with pytest.raises(UserError, match="the most accurate give") as error:
        BudgetRule(score=Entropy(), accuracy=0.999).fit(data)
    assert float(str(error.value).split("give ")[1].split()[0]) >= best - 5e-5
    with pytest.raises(UserError, match=r"threshold\.data=mixed needs attacked calibration images"):
        BudgetRule(score=Entropy(), share=0.5, data="mixed").fit(data)


def test_only_a_clean_budget_of_cost_always_fits():
    assert BudgetRule(score=Entropy(), share=0.5).always_fits
    assert not BudgetRule(score=Entropy(), accuracy=0.5).always_fits
    assert not BudgetRule(score=Entropy(), share=0.5, data="mixed").always_fits


def test_the_facts_name_the_limit():
    data = calibration()
    rule = BudgetRule(score=Entropy(), share=0.5)
    assert rule.facts(data, rule.fit(data)) == {"data": "clean", "mean MACs at most": 25.0}
    rule = BudgetRule(score=Entropy(), accuracy=0.5)
    assert rule.facts(data, rule.fit(data)) == {"data": "clean", "accuracy at least": 0.5}


def test_a_network_with_one_exit_has_nothing_to_search():
    costs = Costs(macs=(10,), macs_paper=(10,), macs_plain=10, macs_plain_paper=10)
    bank = graded(40, exits=1)
    assert BudgetRule(score=Entropy(), share=1.0).fit(Calibration(bank.logits, bank.labels, costs)).values == ()


@pytest.mark.parametrize("robust", [0.0, 0.2, 0.8, 1.0])
def test_the_worst_case_counts_for_what_was_asked(robust):
    data = calibration(attacked=2)
    rule = BudgetRule(score=Entropy(), share=0.7, data="mixed", robust=robust)
    policy = rule.fit(data)
    macs = {name: summarise(judge(b.logits, b.labels, policy), COSTS).mean_macs for name, b in data.banks().items()}
    spent = (1 - robust) * macs["clean"] + robust * (macs["attack0"] + macs["attack1"]) / 2
    assert spent <= 35 + 1e-6
    assert rule.facts(data, policy) == {"data": "mixed", "robust": robust, "mean MACs at most": 35.0}
    if robust in (0, 1):
        pure = BudgetRule(score=Entropy(), share=0.7, data=("clean", "adversarial")[int(robust)]).fit(data)
        assert weighed(data, policy, robust) >= weighed(data, pure, robust) - 0.02


def weighed(data, policy, robust):
    """(1 - robust) * clean accuracy + robust * accuracy under the worst of the attacks."""
    right = {name: judge(bank.logits, bank.labels, policy).correct for name, bank in data.banks().items()}
    worst = right["attack0"] & right["attack1"]
    return (1 - robust) * float(right["clean"].double().mean()) + robust * float(worst.double().mean())


def test_a_weight_buys_what_it_weighs():
    data = calibration(2000, attacked=2)
    of = {
        robust: BudgetRule(score=Entropy(), macs=60.0, data="mixed", robust=robust).fit(data) for robust in (0.05, 0.95)
    }
    assert weighed(data, of[0.95], 1.0) >= weighed(data, of[0.05], 1.0)
    assert weighed(data, of[0.05], 0.0) >= weighed(data, of[0.95], 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"robust": 0.7}, r"threshold\.robust=0\.7 weighs mixed images: give threshold\.data=mixed too"),
        ({"robust": 1.5, "data": "mixed"}, r"threshold\.robust must be in \[0, 1\]"),
    ],
)
def test_weights_that_weigh_nothing_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        BudgetRule(score=Entropy(), share=0.5, **options)
