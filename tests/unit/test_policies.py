"""Patience, ensembles and chance against plain loops; what a record keeps of a policy."""

import json
import math

import pytest
import torch

from helpers.calibration import COSTS, calibration, graded
from rdi.adaptive import AdaptivePredictor
from rdi.config import build
from rdi.errors import UserError
from rdi.evaluating import interval, judge, summarise, worst_case
from rdi.thresholds import (
    AgreementPolicy,
    AgreementRule,
    BudgetRule,
    Calibration,
    Confidence,
    EnsemblePolicy,
    EnsembleRule,
    Entropy,
    Margin,
    PatiencePolicy,
    PatienceRule,
    Policy,
    RandomisedPolicy,
    RandomisedRule,
    RiskRule,
    ShareRule,
    ThresholdPolicy,
)


def random_logits(samples=80, exits=5, classes=3, seed=0):
    return torch.randn(samples, exits, classes, generator=torch.Generator().manual_seed(seed))


def share(score=None):
    return ShareRule(score=score or Entropy())


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_patience_equals_the_counter_of_the_paper(patience):
    logits = random_logits()
    expected = []
    for sample in logits.argmax(dim=2).tolist():
        counter, last = 0, None
        for k, answer in enumerate(sample):
            counter = counter + 1 if answer == last else 0
            last = answer
            if counter == patience or k == len(sample) - 1:
                expected.append(k)
                break
    policy = PatiencePolicy(5, patience)
    assert policy.choose(logits).tolist() == expected
    assert min(expected) == patience
    assert policy.values == ()


def test_patience_that_never_ends_is_refused():
    for patience in (4, 0):
        with pytest.raises(UserError, match=r"threshold\.patience must be in \[1, 3\]"):
            PatiencePolicy(5, patience)
    with pytest.raises(UserError, match="this network has 2: use threshold=entropy"):
        PatienceRule(patience=1).check(2, COSTS)
    with pytest.raises(UserError, match=r"threshold\.patience must be at least 1"):
        PatienceRule(patience=0)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5, 3.0, 1.0]])
@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
def test_an_ensemble_answers_with_the_mean_of_the_exits_so_far(mean, weights):
    logits = random_logits(samples=20)
    policy = EnsemblePolicy(share().fit_logits(logits), mean, weights)
    given = weights or [1.0] * 5
    for n, k in ((n, k) for n in range(20) for k in range(5)):
        p = logits[n, : k + 1].double().softmax(dim=1)
        w = torch.tensor(given[: k + 1]).double()[:, None] / sum(given[: k + 1])
        together = (w * p).sum(dim=0) if mean == "arithmetic" else (w * p.log()).sum(dim=0).exp()
        mine = policy.answers(logits)[n, k].double().softmax(dim=0)
        torch.testing.assert_close(mine, together / together.sum(), rtol=1e-5, atol=1e-6)


def test_an_ensemble_decides_and_is_judged_by_its_own_answer():
    bank = graded(300, skill=(1.0, 1.0, 1.0))
    data = calibration(300)
    policy = EnsembleRule(rule=share()).fit(data)
    assert set(policy.choose(bank.logits).tolist()) == {0, 1, 2}
    assert torch.equal(policy.choose(bank.logits), Policy.choose(policy, bank.logits))
    result = judge(bank.logits, bank.labels, policy)
    exits = policy.choose(bank.logits)
    answers = policy.answers(bank.logits).argmax(dim=2)
    assert result.correct.tolist() == [int(answers[n, k]) == int(bank.labels[n]) for n, k in enumerate(exits)]
    # three equally good exits know more together than the last one does
    alone = judge(bank.logits, bank.labels, share().fit(data))
    assert result.exit_accuracy[0] == alone.exit_accuracy[0]
    assert result.exit_accuracy[2] > alone.exit_accuracy[2]


@pytest.mark.parametrize("agreeing", [2, 3])
def test_agreement_answers_with_what_exits_in_a_row_have_in_common(agreeing):
    logits = 3 * random_logits(samples=30)
    policy = AgreementPolicy(ThresholdPolicy(Entropy(), [0.9] * 4), agreeing)
    p = logits.double().softmax(dim=2)
    expected = []
    for n in range(30):
        leaves = 4
        for k in range(agreeing - 1, 4):
            least = [min(float(p[n, j, c]) for j in range(k - agreeing + 1, k + 1)) for c in range(3)]
            both = [one + (1 - sum(least)) / 3 for one in least]
            mine = policy.answers(logits)[n, k].double().softmax(dim=0)
            assert mine.tolist() == pytest.approx(both, rel=1e-5, abs=1e-7)
            if leaves == 4 and -sum(one * math.log(one) for one in both) < 0.9:
                leaves = k
        expected.append(leaves)
    chosen = policy.choose(logits)
    assert chosen.tolist() == expected
    assert set(expected) == set(range(agreeing - 1, 5))
    assert torch.equal(chosen, Policy.choose(policy, logits))
    assert torch.equal(policy.answers(logits)[:, 4], logits[:, 4])
    assert torch.equal(policy.thresholds().choose(policy.answers(logits)), chosen)


def test_exits_that_are_sure_of_different_classes_do_not_agree_and_leave_numbers():
    sure, other, nothing = [0.0, -torch.inf], [-torch.inf, 0.0], [0.0, 0.0]
    logits = torch.tensor([[sure, sure, nothing], [sure, other, nothing], [[50.0, -50.0], [60.0, -60.0], nothing]])
    policy = AgreementPolicy(ThresholdPolicy(Entropy(), [9.0, 0.1]))
    assert policy.choose(logits).tolist() == [1, 2, 1]
    assert Entropy()(policy.answers(logits))[1, 1] == pytest.approx(math.log(2))
    logits.requires_grad_()
    (grad,) = torch.autograd.grad(Entropy()(policy.answers(logits)).sum(), logits)
    assert grad[2].isfinite().all()


def test_agreement_is_fitted_on_what_exits_have_in_common():
    data = calibration(400, attacked=2)
    policy = AgreementRule(rule=share()).fit(data)
    # a third each at exits 1 and, of those that are left, the last: exit 0 cannot let anybody go
    assert torch.bincount(policy.choose(data.logits), minlength=3).tolist() == [0, 133, 267]
    assert policy.policy.values[0] == -1e9
    budget = 0.5 * (COSTS.macs[1] + COSTS.macs[2])
    found = AgreementRule(rule=BudgetRule(score=Entropy(), macs=budget, data="mixed")).fit(data)
    parts = [torch.tensor(COSTS.macs)[found.choose(bank.logits)].double().mean() for bank in data.banks().values()]
    assert 0.5 * parts[0] + 0.25 * (parts[1] + parts[2]) <= budget


def test_agreement_that_makes_no_sense_is_refused():
    with pytest.raises(UserError, match=r"threshold\.agreeing must be in \[2, 2\]"):
        AgreementRule(rule=share(), agreeing=3).check(3, COSTS)
    with pytest.raises(UserError, match="this network has 2: use threshold=entropy"):
        AgreementRule(rule=share()).check(2, COSTS)
    with pytest.raises(UserError, match=r"threshold\.agreeing must be at least 2"):
        AgreementRule(rule=share(), agreeing=1)
    cheap = AgreementRule(rule=BudgetRule(score=Entropy(), macs=COSTS.macs[0]))
    with pytest.raises(UserError, match=rf"no image costs less than {COSTS.macs[1]} MACs \(exit 1\)"):
        cheap.fit(calibration())


@pytest.mark.parametrize("compaction", ["always", "never"])
def test_a_running_network_gives_the_answers_of_the_ensemble(compaction, tiny):
    net, x = tiny(exits=4), torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = net(x)
    policies = [
        EnsemblePolicy(share().fit_logits(logits), "arithmetic", [3.0, 1.0, 1.0, 1.0]),
        PatiencePolicy(4, 1),
        AgreementRule(rule=share()).fit(Calibration(logits, logits[:, -1].argmax(dim=1), COSTS)),
    ]
    for policy in policies:
        out = AdaptivePredictor(net, policy, compaction=compaction)(x)
        assert torch.equal(out.exits, policy.choose(logits))
        assert torch.equal(out.labels, policy.predict(logits, out.exits))
        assert len(set(out.exits.tolist())) > 1


def test_what_stands_behind_the_exit_taken_does_not_matter():
    logits = random_logits(samples=30)
    exits = torch.arange(30) % 5
    policies = [EnsemblePolicy(ThresholdPolicy(Entropy(), [0.5] * 4), mean) for mean in ("geometric", "arithmetic")] + [
        ThresholdPolicy(Entropy(), [0.5] * 4)
    ]
    for policy in policies:
        spoilt = logits.clone()
        for n, k in enumerate(exits):
            spoilt[n, k + 1 :] = math.nan
        assert torch.equal(policy.predict(spoilt, exits), policy.predict(logits, exits))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": "median"}, r"threshold\.mean must be one of geometric, arithmetic"),
        ({"weights": [1, 0, 1]}, r"threshold\.weights must be in \(0, inf\)"),
        ({"weights": [1, 2]}, r"threshold\.weights must list 3 numbers, one per exit, got 2"),
    ],
)
def test_ensembles_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        EnsembleRule(rule=share(), **options).check(3, COSTS)


def test_what_the_rule_inside_refuses_is_refused():
    with pytest.raises(UserError, match=r"threshold\.shares must list 3 shares"):
        EnsembleRule(rule=ShareRule(score=Entropy(), shares=[0.5, 0.5])).check(3, COSTS)
    with pytest.raises(UserError, match=r"threshold\.shares must list 3 shares"):
        RandomisedRule(rule=ShareRule(score=Entropy(), shares=[0.5, 0.5]), noise=0.1).check(3, COSTS)
    with pytest.raises(UserError, match="PatienceRule does not: choose"):
        RandomisedRule(rule=PatienceRule(patience=1), noise=0.1).fit(calibration())


@pytest.mark.parametrize("score", [Entropy(), Confidence(), Margin()], ids=["entropy", "confidence", "margin"])
def test_random_thresholds_lie_where_noise_more_and_fewer_would_leave(score):
    data = calibration(1000)
    base = share(score).fit(data)
    policy = RandomisedRule(rule=share(score), noise=0.05).fit(data)
    for k, (low, value, high) in enumerate(zip(policy.low, base.values, policy.high, strict=True)):
        column = score(data.logits)[:, k]
        below, middle, above = (float((column < at).double().mean()) for at in (low, value, high))
        assert (middle - below, above - middle) == pytest.approx((0.05, 0.05), abs=2e-3)
    assert policy.thresholds().values == policy.values


def test_a_threshold_that_lets_nobody_or_everybody_leave_is_left_alone():
    data = calibration(100)
    policy = RandomisedRule(rule=ShareRule(score=Entropy(), shares=[0, 1, 0]), noise=0.2).fit(data)
    assert policy.low == policy.high
    assert set(policy.choose(data.logits).tolist()) == {1}


def test_draws_differ_can_be_repeated_and_are_averaged():
    data = calibration(400)
    policy = RandomisedRule(rule=share(), noise=0.2, draws=8).fit(data)
    draws = [policy.with_draw(d).choose(data.logits) for d in range(8)]
    assert all(not torch.equal(draws[0], other) for other in draws[1:])
    assert torch.equal(draws[3], policy.with_draw(3).choose(data.logits))
    assert not torch.equal(policy.choose(data.logits), policy.choose(data.logits)), "deployed, chance goes on"
    outcome = judge(data.logits, data.labels, policy)
    assert outcome.exits.shape == outcome.correct.shape == (8, 400)
    assert outcome.exits.tolist() == [draw.tolist() for draw in draws]
    singles = [judge(data.logits, data.labels, policy.with_draw(d)) for d in range(8)]
    for d, single in enumerate(singles):
        hits = data.logits[torch.arange(400), draws[d]].argmax(1) == data.labels
        assert outcome.correct[d].tolist() == hits.tolist()
        assert single.correct.shape == (400,)
    summary = summarise(outcome, COSTS)
    assert summary.accuracy == pytest.approx(float(outcome.correct.double().mean()))
    assert summary.mean_macs == pytest.approx(float(torch.tensor(COSTS.macs).double()[outcome.exits].mean()))
    assert sum(summary.exit_share) == pytest.approx(1)
    assert interval(outcome.correct) == (summary.accuracy_low, summary.accuracy_high)


def test_the_worst_case_of_random_thresholds_is_taken_draw_by_draw():
    data = calibration(200, attacked=2)
    policy = RandomisedRule(rule=share(), noise=0.3, draws=4).fit(data)
    outcomes = [judge(bank.logits, bank.labels, policy) for bank in data.attacked.values()]
    expected = [all(bool(one.correct[d, n]) for one in outcomes) for d in range(4) for n in range(200)]
    assert worst_case(outcomes).flatten().tolist() == expected


def test_chance_is_uniform_between_low_and_high():
    logits = torch.zeros(20_000, 2, 2)  # entropy ln 2 everywhere
    at = math.log(2)
    policy = RandomisedPolicy(Entropy(), [at - 0.1], [at + 0.3])
    assert float((policy.choose(logits) == 0).double().mean()) == pytest.approx(0.75, abs=0.02)
    assert float(policy.leaves(logits[:, :1]).double().mean()) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 0}, r"threshold\.noise must be in \(0, 0\.5\]"),
        ({"noise": 0.1, "draws": 0}, r"threshold\.draws must be in \[1, 10000\]"),
        ({"noise": 0.1, "seed": -1}, r"threshold\.seed must be at least 0"),
    ],
)
def test_chance_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        RandomisedRule(rule=share(), **options)


def test_low_above_high_is_refused():
    with pytest.raises(UserError, match="must lie between low and high"):
        RandomisedPolicy(Entropy(), [0.2], [0.1])


POLICIES = [
    ThresholdPolicy(Margin(), [0.1, 1 / 3]),
    PatiencePolicy(3, 1),
    EnsemblePolicy(ThresholdPolicy(Entropy(), [0.5, 0.25]), "arithmetic", [1, 2, 3]),
    RandomisedPolicy(Confidence(), [0.5, 0.6], [0.7, 0.6], draws=3, seed=5),
    EnsemblePolicy(RandomisedPolicy(Entropy(), [0.1, 0.2], [0.3, 0.4], draws=2)),
    AgreementPolicy(ThresholdPolicy(Entropy(), [0.5, 0.8]), 2),
    AgreementPolicy(RandomisedPolicy(Margin(), [0.1, 0.2], [0.3, 0.4], draws=2), 2),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_a_policy_is_built_again_from_its_description(policy):
    logits = random_logits(exits=3)
    stored = json.loads(json.dumps(policy.describe()))
    again = build(stored, "policy")
    assert again.describe() == policy.describe()
    assert repr(again) == repr(policy)
    assert " object at " not in repr(policy)
    assert (again.exits, again.values, again.draws) == (policy.exits, policy.values, policy.draws)
    for draw in range(policy.draws):
        assert torch.equal(again.with_draw(draw).choose(logits), policy.with_draw(draw).choose(logits))
    assert str(policy)


def test_thresholds_without_an_end_are_shown_as_such():
    assert str(ThresholdPolicy(Entropy(), [1e9, -1e9, 0.5])) == "thresholds +inf, -inf, 0.5"
    assert str(ThresholdPolicy(Entropy(), [])) == "thresholds none"


def test_rules_inside_rules_keep_their_needs():
    risk = RiskRule(score=Entropy(), alpha=0.05, risk="error", data="adversarial")
    assert (EnsembleRule(rule=risk).data, EnsembleRule(rule=risk).always_fits) == ("adversarial", False)
    assert (RandomisedRule(rule=risk, noise=0.1).data, RandomisedRule(rule=share(), noise=0.1).always_fits) == (
        "adversarial",
        True,
    )


def test_without_its_chance_a_policy_has_the_middle_thresholds_and_the_same_answers():
    logits = random_logits()
    chance = RandomisedPolicy(Entropy(), [0.4, 0.5, 0.5, 0.6], [0.8, 0.9, 0.7, 0.6], draws=3)
    middle = ThresholdPolicy(Entropy(), [0.6, 0.7, 0.6, 0.6])
    assert chance.deterministic().values == pytest.approx(middle.values)
    both = EnsemblePolicy(chance, "arithmetic").deterministic()
    assert (both.draws, both.mean) == (1, "arithmetic")
    assert torch.equal(both.choose(logits), EnsemblePolicy(middle, "arithmetic").choose(logits))
    assert torch.equal(both.answers(logits), EnsemblePolicy(middle, "arithmetic").answers(logits))
    assert middle.deterministic() is middle


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@pytest.mark.parametrize("weights", [None, [1.0, 3.0]])
def test_exits_of_an_ensemble_that_exclude_classes_leave_numbers(mean, weights):
    sure, other = [0.0, -torch.inf, -torch.inf], [-torch.inf, 0.0, -torch.inf]
    logits = torch.tensor([[sure, sure], [sure, other], [sure, [2.0, 1.0, 0.0]]])
    policy = EnsemblePolicy(ThresholdPolicy(Entropy(), [-1.0]), mean, weights)
    answers = policy.answers(logits)
    entropy = Entropy()(answers)
    assert entropy.isfinite().all()
    assert entropy[0].tolist() == [0.0, 0.0]
    if weights is None:
        assert entropy[1, 1] == pytest.approx(math.log(2)), "two exits that are certain of different classes: a coin"
    assert torch.equal(policy.predict(logits, torch.ones(3, dtype=torch.long))[::2], torch.tensor([0, 0]))
