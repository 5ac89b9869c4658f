"""Exit policies against plain loops, and the paper's rank rule re-implemented."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from rdi.errors import UserError
from rdi.records import Costs
from rdi.thresholds import (
    BudgetRule,
    Calibration,
    Confidence,
    Entropy,
    FixedRule,
    Margin,
    Policy,
    RiskRule,
    ShareRule,
    ThresholdPolicy,
)
from rdi.thresholds.gaps import EDGE

SCORES = [Entropy(), Confidence(), Margin()]
IDS = ["entropy", "confidence", "margin"]


def random_logits(samples=60, exits=4, classes=5, seed=0):
    return 2 * torch.randn(samples, exits, classes, generator=torch.Generator().manual_seed(seed))


def calibration(exits=3, samples=60):
    labels = torch.randint(5, (samples,), generator=torch.Generator().manual_seed(9))
    macs = tuple(10 * (k + 1) for k in range(exits))
    costs = Costs(macs=macs, macs_paper=macs, macs_plain=macs[-1], macs_plain_paper=macs[-1])
    return Calibration(random_logits(samples, exits), labels, costs)


def score_by_hand(score, logits):
    """One sample's logits of one exit -> score, in float64 with numpy."""
    p = np.exp(np.asarray(logits, dtype=float) - max(logits))
    p /= p.sum()
    top = sorted(p)
    return {"Entropy": entropy(p), "Confidence": top[-1], "Margin": top[-1] - top[-2]}[type(score).__name__]


def surer(score, value, threshold):
    return value > threshold if type(score).__name__ in ("Confidence", "Margin") else value < threshold


def loop(score, values, logits):
    exits = []
    for sample in logits.tolist():
        for k, threshold in enumerate(values):
            if surer(score, score_by_hand(score, sample[k]), threshold):
                exits.append(k)
                break
        else:
            exits.append(len(values))
    return exits


@pytest.mark.parametrize("score", SCORES, ids=IDS)
def test_scores_equal_their_definitions(score):
    logits = random_logits()
    expected = [[score_by_hand(score, exit) for exit in sample] for sample in logits.tolist()]
    torch.testing.assert_close(score(logits).double(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_entropy_has_its_known_ends():
    assert float(Entropy()(torch.zeros(10))) == pytest.approx(math.log(10))
    assert float(Entropy()(torch.tensor([1000.0, 0, 0]))) == 0
    assert float(Confidence()(torch.zeros(10))) == pytest.approx(0.1)
    assert float(Margin()(torch.zeros(10))) == 0


@pytest.mark.parametrize("score", SCORES, ids=IDS)
def test_scores_in_half_precision_are_computed_in_full(score):
    logits = random_logits().bfloat16()
    assert score(logits).dtype == torch.float32
    assert torch.equal(score(logits), score(logits.float()))


@pytest.mark.parametrize("score", SCORES, ids=IDS)
@pytest.mark.parametrize("exits", [1, 2, 4])
def test_choose_equals_a_loop_over_samples_and_exits(score, exits):
    logits = random_logits(exits=exits)
    # thresholds half-way between two neighbouring scores, so that float32 and float64 cannot disagree
    values = []
    for k in range(exits - 1):
        ranked = sorted(score_by_hand(score, sample[k]) for sample in logits.tolist())
        values.append((ranked[20 + 5 * k] + ranked[21 + 5 * k]) / 2)
    chosen = ThresholdPolicy(score, values).choose(logits)
    assert chosen.dtype == torch.long
    assert chosen.tolist() == loop(score, values, logits)
    assert set(chosen.tolist()) == set(range(exits)), "every exit is used"


@pytest.mark.parametrize("score", [Entropy(), Confidence(), Margin()], ids=["entropy", "confidence", "margin"])
def test_scoring_all_exits_at_once_chooses_as_exit_by_exit(score):
    logits = 3 * torch.randn(300, 5, 10, generator=torch.Generator().manual_seed(5))
    policy = ShareRule(score=score).fit_logits(
        logits
    )  # thresholds that are scores of samples: strictly equal ones stay
    assert torch.equal(policy.choose(logits), Policy.choose(policy, logits))


def test_leaving_is_strict():
    logits = torch.zeros(1, 2, 2)
    at = float(Entropy()(logits[0, 0]))
    assert ThresholdPolicy(Entropy(), [at]).choose(logits).tolist() == [1]
    assert ThresholdPolicy(Entropy(), [math.nextafter(at, 9) + 1e-6]).choose(logits).tolist() == [0]
    assert ThresholdPolicy(Confidence(), [0.5]).choose(logits).tolist() == [1]
    assert ThresholdPolicy(Margin(), [0.0]).choose(logits).tolist() == [1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([math.inf, 0.0], 0), ([0.0, math.inf], 1), ([-math.inf, -math.inf], 2), ([1e300, 1e300], 0), ([-1e300, 3.0], 1)],
)
def test_thresholds_without_bounds_send_everybody_to_one_exit(values, expected):
    chosen = ThresholdPolicy(Entropy(), values).choose(random_logits(exits=3))
    assert set(chosen.tolist()) == {expected}


def test_nan_thresholds_are_refused():
    with pytest.raises(UserError, match="must be numbers"):
        ThresholdPolicy(Entropy(), [0.1, float("nan")])


def test_a_policy_for_another_number_of_exits_is_refused():
    with pytest.raises(UserError, match="for 3 exits, the network has 4: give 3 values"):
        ThresholdPolicy(Entropy(), [0.1, 0.2]).choose(random_logits(exits=4))


@pytest.mark.parametrize("score", SCORES, ids=IDS)
@pytest.mark.parametrize(("samples", "exits"), [(60, 4), (61, 4), (63, 4), (49, 7), (50, 7), (7, 7), (90, 3)])
def test_equal_shares_give_every_exit_its_floor(score, samples, exits):
    logits = random_logits(samples, exits, seed=samples)
    policy = ShareRule(score=score).fit_logits(logits)
    counts = torch.bincount(policy.choose(logits), minlength=exits).tolist()
    assert counts[:-1] == [samples // exits] * (exits - 1)
    assert sum(counts) == samples


def paper_rule(entropies):
    """The official code's way: at each exit the entropy at rank floor(N / E), then drop the lowest."""
    samples, exits = entropies.shape
    running, values = list(range(samples)), []
    for k in range(exits - 1):
        running.sort(key=lambda n: entropies[n, k])
        values.append(entropies[running[samples // exits], k])
        running = running[samples // exits :]
    return values


@pytest.mark.parametrize(("samples", "exits"), [(60, 3), (100, 7), (101, 7)])
def test_the_fitted_thresholds_are_the_papers(samples, exits):
    logits = random_logits(samples, exits, seed=5)
    entropies = Entropy()(logits).double().numpy()
    published = paper_rule(entropies)
    fitted = ShareRule(score=Entropy()).fit_logits(logits)
    assert torch.equal(fitted.choose(logits), ThresholdPolicy(Entropy(), published).choose(logits))
    # the published value is a sample's own; ours lies halfway to the next surer sample
    next_surer = [entropies[entropies[:, k] < value, k].max() for k, value in enumerate(published)]
    assert fitted.values == pytest.approx([(a + b) / 2 for a, b in zip(published, next_surer, strict=True)])


@pytest.mark.parametrize("score", SCORES, ids=IDS)
@pytest.mark.parametrize(
    "rule",
    [
        lambda score: ShareRule(score=score),
        lambda score: ShareRule(score=score, shares=[0.6, 0.0, 0.4]),
        lambda score: BudgetRule(score=score, share=0.7),
        lambda score: RiskRule(score=score, alpha=0.2),
    ],
    ids=["equal shares", "shares", "budget", "risk"],
)
def test_a_fitted_threshold_lies_between_neighbours_and_equals_no_calibration_score(rule, score):
    data = calibration(samples=300)
    fitted = rule(score).fit(data)
    scores = score(data.logits).double()
    inside = [(k, value) for k, value in enumerate(fitted.values) if abs(value) < EDGE]
    assert inside, "some threshold parts the samples"
    for k, value in inside:
        below, above = scores[scores[:, k] < value, k], scores[scores[:, k] > value, k]
        assert len(below) + len(above) == len(scores)
        if not isinstance(rule(score), RiskRule):  # which fits on a part of the samples
            assert value == pytest.approx(float(below.max() + above.min()) / 2, abs=1e-12)


def test_a_threshold_between_two_scores_that_differ_in_the_last_bit_parts_them():
    low = 0.5
    high = float(np.nextafter(np.float32(low), np.float32(1)))
    scores = torch.tensor([[low, 0.0], [high, 0.0]])
    for score, left in ((Rank(), [0, 1]), (Margin(), [1, 0])):
        fitted = ShareRule(score=score, shares=[0.5, 0.5]).fit_scores(scores)
        assert low < fitted.values[0] < high
        assert fitted.choose_scores(scores).tolist() == left
    # exit by exit, as a running network asks
    ranked = ShareRule(score=Rank(), shares=[0.5, 0.5]).fit_scores(scores)
    assert ranked.leaves(scores[:, :1, None]).tolist() == [True, False]


class Rank:
    """The only logit itself; smaller is surer."""

    higher_is_surer = False

    def __call__(self, logits):
        return logits[..., 0]


@pytest.mark.parametrize("certain", [[0.0, -torch.inf, -torch.inf], [-torch.inf, 7.0, -torch.inf]])
def test_an_exit_that_excludes_classes_is_as_sure_as_can_be(certain):
    logits = torch.tensor([[certain, [0.0, 1.0, 2.0]]])
    assert [float(score(logits[:, 0])) for score in SCORES] == [0.0, 1.0, 1.0]
    for score, value in zip(SCORES, (0.1, 0.9, 0.9), strict=True):
        assert ThresholdPolicy(score, [value]).choose(logits).tolist() == [0]
        half = torch.tensor([1.0, 1.0, -torch.inf], requires_grad=True)
        at_half = score(half)
        assert float(at_half.detach()) == pytest.approx({0: math.log(2), 1: 0.5, 2: 0.0}[SCORES.index(score)])
        (slope,) = torch.autograd.grad(at_half, half)
        assert slope.isfinite().all()


def test_ties_stay_together():
    """Ten equal samples and two sure ones: asking for six at exit 0 cannot split the ten."""
    logits = torch.zeros(12, 2, 3)
    logits[0, 0, 0] = logits[1, 0, 0] = 5.0
    chosen = ShareRule(score=Entropy()).fit_logits(logits).choose(logits)
    assert chosen.tolist() == [0, 0] + [1] * 10


def test_shares_are_those_asked_for():
    logits = random_logits(200, 4, seed=2)
    counts = torch.bincount(ShareRule(score=Margin(), shares=[0.5, 0.25, 0.05, 0.2]).fit_logits(logits).choose(logits))
    assert counts.tolist() == [100, 50, 10, 40]


def test_a_share_of_zero_lets_nobody_leave_and_a_share_of_one_everybody():
    logits = random_logits(50, 3)
    for score in SCORES:
        nobody = ShareRule(score=score, shares=[0, 0, 1]).fit_logits(logits)
        assert set(nobody.choose(logits).tolist()) == {2}
        first = ShareRule(score=score, shares=[1, 0, 0]).fit_logits(logits)
        assert set(first.choose(logits).tolist()) == {0}
        assert all(math.isfinite(value) for value in first.values), "a record must hold it"


def test_scales_and_offsets_are_applied_after_the_fit():
    logits = random_logits(60, 4)
    fitted = ShareRule(score=Entropy()).fit_logits(logits).values
    moved = ShareRule(score=Entropy(), scales=[3, 4, 1], offsets=[-0.15, 0, 0.5]).fit_logits(logits).values
    assert moved == pytest.approx([3 * fitted[0] - 0.15, 4 * fitted[1], fitted[2] + 0.5])
    assert ShareRule(score=Entropy(), scales=2, offsets=1).fit_logits(logits).values == pytest.approx(
        [2 * value + 1 for value in fitted]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": [0.5, 0.5]}, "must list 4 shares, one per exit, got 2"),
        ({"offsets": [0.1]}, r"threshold\.offsets must list 3 numbers, one per exit but the last, got 1"),
        ({"scales": [1, 1, 1, 1]}, r"threshold\.scales must list 3 numbers"),
    ],
)
def test_lists_of_another_length_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        ShareRule(score=Entropy(), **options).fit_logits(random_logits(exits=4))


@pytest.mark.parametrize("shares", [[0.5, 0.4], [0.5, -0.5, 1.0], [2.0, -1.0], []])
def test_shares_that_are_no_distribution_are_refused(shares):
    with pytest.raises(UserError, match=r"threshold\.shares"):
        ShareRule(score=Entropy(), shares=shares)


def test_fixed_thresholds_are_taken_as_given():
    policy = FixedRule(score=Entropy(), values=[0.5, 0.25]).fit(calibration(exits=3))
    assert policy.values == (0.5, 0.25)
    assert policy.exits == 3
    with pytest.raises(UserError, match=r"threshold\.values must list 3 numbers, one per exit but the last, got 2"):
        FixedRule(score=Entropy(), values=[0.5, 0.25]).fit(calibration(exits=4))


def test_a_network_with_one_exit_needs_no_thresholds():
    logits = random_logits(exits=1)
    policy = ShareRule(score=Entropy()).fit_logits(logits)
    assert policy.values == ()
    assert set(policy.choose(logits).tolist()) == {0}
