"""Curves of accuracy against cost, against plain loops."""

import pytest
import torch

from helpers.calibration import COSTS, calibration, graded
from rdi.curves import ANYTIME, BUDGETED, CLEAN, WORST, anytime, budgeted, fitted
from rdi.evaluating import judge, summarise
from rdi.thresholds import Bank, Entropy, ShareRule
from rdi.thresholds.rules import geometric_shares


def banks(attacks=2):
    data = calibration(100, seed=3, attacked=attacks)
    return {"clean": graded(150, seed=4), **data.attacked}


def test_anytime_is_each_exit_alone_at_its_cost():
    mine = banks()
    points = anytime(mine, COSTS)
    assert [(p.kind, p.bank, p.setting) for p in points] == [
        (ANYTIME, bank, k) for k in range(3) for bank in ("clean", "attack0", "attack1", WORST)
    ]
    for point in points:
        k = int(point.setting)
        assert (point.mean_macs, point.mean_macs_paper) == (COSTS.macs[k], COSTS.macs_paper[k])
        hits = {name: (b.logits[:, k].argmax(1) == b.labels).tolist() for name, b in mine.items()}
        worst = [a and b for a, b in zip(hits["attack0"], hits["attack1"], strict=True)]
        expected = worst if point.bank == WORST else hits[point.bank]
        assert point.accuracy == pytest.approx(sum(expected) / len(expected))


def test_budgeted_is_what_the_fitted_thresholds_give_on_every_bank():
    mine, fitted_on = banks(), graded(200, seed=5).logits
    points = budgeted(fitted(fitted_on, Entropy(), [0.5, 2.0]), mine, COSTS)
    assert len(points) == 8
    for point in points:
        assert point.kind == BUDGETED
        policy = ShareRule(score=Entropy(), shares=geometric_shares(3, point.setting)).fit_logits(fitted_on)
        judged = {name: judge(bank.logits, bank.labels, policy) for name, bank in mine.items()}
        if point.bank == WORST:
            right = judged["attack0"].correct & judged["attack1"].correct
            latest = torch.maximum(judged["attack0"].exits, judged["attack1"].exits)
            assert point.accuracy == pytest.approx(float(right.double().mean()))
            assert point.mean_macs == pytest.approx(sum(COSTS.macs[k] for k in latest.tolist()) / 100)
        else:
            expected = summarise(judged[point.bank], COSTS)
            assert point.accuracy == pytest.approx(expected.accuracy)
            assert point.mean_macs == pytest.approx(expected.mean_macs)
            assert point.mean_macs_paper == pytest.approx(expected.mean_macs_paper)


@pytest.mark.parametrize("attacks", [0, 1])
def test_fewer_than_two_attacks_have_no_worst_case_of_their_own(attacks):
    names = {point.bank for point in anytime(banks(attacks), COSTS)}
    assert names == {CLEAN, *(f"attack{k}" for k in range(attacks))}


def test_one_exit_has_curves_of_one_point():
    bank = Bank(torch.randn(20, 1, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(20, dtype=torch.long))
    costs = type(COSTS)(macs=(7,), macs_paper=(5,), macs_plain=7, macs_plain_paper=5)
    points = anytime({"clean": bank}, costs) + budgeted(fitted(bank.logits, Entropy(), [1.0]), {"clean": bank}, costs)
    assert {(point.mean_macs, point.mean_macs_paper) for point in points} == {(7, 5)}


def test_budgeted_goes_from_the_first_exit_to_the_last_and_costs_more_all_the_way():
    ratios = [1e-6, 0.1, 0.5, 1.0, 2.0, 10.0, 1e6]
    policies = fitted(graded(300, seed=1).logits, Entropy(), ratios)
    points = budgeted(policies, {"clean": graded(300, seed=2)}, COSTS)
    assert [point.setting for point in points] == [*policies] == ratios
    for kind, rule in (("mean_macs", COSTS.macs), ("mean_macs_paper", COSTS.macs_paper)):
        costs = [getattr(point, kind) for point in points]
        assert costs == sorted(costs)
        assert costs[0] == pytest.approx(rule[0], rel=0.1)
        assert costs[-1] == pytest.approx(rule[-1], rel=0.1)
