"""`rdi.attack` and `rdi.evaluate` on plain tensors say what the parts that they are made of say."""

import sys
import types

import pytest
import torch
from torch import nn

import rdi
from rdi import evaluating, macs
from rdi.attacking import attack_split, joined
from rdi.attacks import Average, Ball, MaxAverage, Routed, SingleExit
from rdi.attacks.engine import Engine
from rdi.data.base import Split
from rdi.errors import UserError
from rdi.thresholds import Entropy, ShareRule, ThresholdPolicy

BALL = {"eps": 0.1, "step_size": 0.03, "steps": 2}
POLICY = ThresholdPolicy(Entropy(), [1.37, 1.36])
SUITE = {"single": SingleExit(exit="each", **BALL), "average": Average(**BALL), "routed": Routed(**BALL)}


@pytest.fixture(scope="module")
def images():
    chance = torch.Generator().manual_seed(1)
    return (torch.rand(20, 1, 8, 8, generator=chance) * 255).byte(), torch.randint(4, (20,), generator=chance)


def test_the_images_and_logits_are_those_of_the_command_line(tiny, images):
    net, (x, y) = tiny(), images
    found = rdi.attack(net, {"average": Average(**BALL)}, x, y, batch_size=8, seed=3)
    split = Split("test", x, y, torch.arange(20).numpy())
    expected = joined(attack_split(net, split, Average(**BALL), seed=3, batch_size=8, label="average", engine=Engine()))
    assert torch.equal(found["average"].logits, expected.logits)
    assert found["average"].linf == expected.linf
    assert found["average"].ball == Ball(0.1)
    made = found["average"].images
    assert torch.equal(net(made[:8]), found["average"].logits[:8])
    assert float((made - x.float() / 255).abs().max()) == found["average"].linf


def test_every_figure_is_that_of_its_part(tiny, images):
    net, (x, y) = tiny(), images
    net.train()
    found = rdi.evaluate(net, x.float() / 255, y, POLICY, SUITE)
    assert all(module.training for module in net.modules())
    net.eval()
    banks = {"clean": net(x.float() / 255).detach()}
    banks |= {name: one.logits for name, one in rdi.attack(net, SUITE, x, y, policy=POLICY).items()}
    assert list(banks) == ["clean", "single_exit0", "single_exit1", "single_exit2", "average", "routed"]
    assert [row.attack for row in found.rows] == [*banks, "worst of 5"]
    costs = macs.count(net, (1, 8, 8))
    right = []
    for name, logits in banks.items():
        exits = POLICY.choose(logits)
        correct = logits[torch.arange(20), exits].argmax(dim=1) == y
        row = found[name]
        assert row.accuracy == pytest.approx(float(correct.double().mean()))
        assert (row.accuracy_low, row.accuracy_high) == evaluating.interval(correct)
        assert row.exit_accuracy == pytest.approx((logits.argmax(2) == y[:, None]).double().mean(0).tolist())
        assert row.exit_share == pytest.approx([float((exits == k).double().mean()) for k in range(3)])
        assert row.mean_macs == pytest.approx(sum(costs.macs[k] for k in exits.tolist()) / 20)
        assert row.saving == pytest.approx(1 - row.mean_macs / costs.macs_plain)
        assert (row.eps, row.samples) == (None if name == "clean" else 0.1, 20)
        right += [] if name == "clean" else [correct]
    assert len({share for row in found.rows[:-1] for share in row.exit_share}) > 1
    every = torch.stack(right).all(dim=0)
    assert found.worst.accuracy == pytest.approx(float(every.double().mean()))
    assert (found.worst.accuracy_low, found.worst.accuracy_high) == evaluating.interval(every)
    assert found.worst.exit_share is None


def test_somebody_elses_network_takes_five_lines(tiny, images):
    ours, (x, y) = tiny(), images

    class Theirs(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = ours

        def forward(self, given):
            return list(self.net(given).unbind(dim=1))

    model = rdi.as_multi_exit(Theirs(), (1, 8, 8))
    rule = ShareRule(score=Entropy(), shares=[0.3, 0.3, 0.4])
    policy = rdi.calibrate(model, rule, x[:10], y[:10])
    found = rdi.evaluate(model, x[10:], y[10:], policy, [MaxAverage(**BALL), Average(**BALL)])
    expected = rdi.evaluate(ours, x[10:], y[10:], rdi.calibrate(ours, rule, x[:10], y[:10]), [MaxAverage(**BALL)])
    assert policy.values == rdi.calibrate(ours, rule, x[:10], y[:10]).values
    assert found["clean"].exit_share == expected["clean"].exit_share
    assert [row.attack for row in found.rows] == ["clean", "max_average", "average", "worst of 2"]
    assert "max_average" in str(found)
    assert f"{100 * found.worst.accuracy:.1f}" in str(found).split("worst of 2")[1]
    assert max(map(len, str(found).splitlines())) <= 80


def test_worst_cases_are_over_one_threat_each_and_names_stay_apart(tiny, images):
    weak, round_ = Average(eps=0.05, step_size=0.03, steps=1), Average(eps=0.1, norm="l2", step_size=0.05, steps=1)
    found = rdi.evaluate(tiny(), *images, POLICY, [weak, Average(**BALL), MaxAverage(**BALL), round_])
    assert [(row.attack, row.eps, row.norm) for row in found.rows] == [
        ("clean", None, None),
        ("average", 0.05, "linf"),
        ("average#2", 0.1, "linf"),
        ("max_average", 0.1, "linf"),
        ("average#3", 0.1, "l2"),
        ("worst of 1", 0.05, "linf"),
        ("worst of 2", 0.1, "linf"),
        ("worst of 1", 0.1, "l2"),
    ]
    with pytest.raises(UserError, match=r"these are of linf eps 0.05, linf eps 0.1, l2 eps 0.1: look into rows"):
        _ = found.worst
    with pytest.raises(UserError, match=r"no attack 'routed' was judged; there are clean, average, average#2"):
        _ = found["routed"]


def test_tables_for_others(tiny, images, monkeypatch):
    found = rdi.evaluate(tiny(), *images, POLICY, Average(**BALL))
    rows = found.to_dicts()
    assert rows[1]["exit2_accuracy"] == found["average"].exit_accuracy[2]
    assert rows[1]["exit0_share"] == found["average"].exit_share[0]
    assert (rows[2]["attack"], rows[2]["mean_macs"]) == ("worst of 1", None)
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=lambda data: ("frame", data)))
    assert found.to_pandas() == ("frame", rows)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'rdi\[pandas\]', or take to_dicts"):
        found.to_pandas()


def test_pandas_takes_the_rows(tiny, images):
    pytest.importorskip("pandas")
    frame = rdi.evaluate(tiny(), *images, POLICY, Average(**BALL)).to_pandas()
    assert frame["attack"].tolist() == ["clean", "average", "worst of 1"]


def test_without_attacks_there_are_clean_figures_only(tiny, images):
    found = rdi.evaluate(tiny(), *images, POLICY)
    assert [row.attack for row in found.rows] == ["clean"]
    with pytest.raises(UserError, match="no attack was judged, so there is no worst case"):
        _ = found.worst


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": nn.Linear(2, 2)}, r"the model is no MultiExitNet \(Linear\)"),
        ({"images": torch.full((20, 1, 8, 8), 2.0)}, r"x must lie in \[0, 1\]"),
        ({"images": torch.zeros(20, 8, 8)}, "x must be a float tensor of shape NCHW"),
        ({"images": torch.zeros(0, 1, 8, 8), "labels": torch.zeros(0, dtype=torch.long)}, "there are no images"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "y must be 20 int64 labels"),
        ({"labels": torch.full((20,), 4)}, r"labels must be in 0..3, got 4..4"),
        ({"policy": ThresholdPolicy(Entropy(), [1.0])}, "the thresholds are for 2 exits, the network has 3"),
        (
            {"policy": ShareRule(score=Entropy(), shares=None)},
            "policy must be a Policy, got ShareRule: give one, as rdi.calibrate",
        ),
        ({"labels": [0] * 20}, "y must be a tensor of 20 int64 labels, got list"),
        ({"attacks": SingleExit(exit=7, **BALL)}, "exit"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"attacks": "paper"}, "attacks must be an Attack, a list, or a mapping from names to attacks, got 'paper'"),
        ({"attacks": [MaxAverage]}, "must be an Attack, got the class MaxAverage itself"),
        ({"attacks": {"clean": Average(**BALL)}}, "no attack may be called 'clean'"),
    ],
)
def test_mistakes_are_one_line(change, message, tiny, images):
    given = {"model": tiny(), "images": images[0], "labels": images[1], "policy": POLICY, "attacks": SUITE, **change}
    with pytest.raises(UserError, match=message) as caught:
        rdi.evaluate(**given)
    assert "\n" not in str(caught.value)


def test_a_rule_that_needs_attacked_images_says_so(tiny, images):
    with pytest.raises(UserError, match="attacked calibration images"):
        rdi.calibrate(tiny(), ShareRuleOnAttacked(), *images)


class ShareRuleOnAttacked(ShareRule):
    """Asks for what a calibration on clean images has not."""

    def __init__(self):
        super().__init__(score=Entropy(), shares=[0.3, 0.3, 0.4])

    def fit(self, calibration):
        calibration.of_kind("adversarial")
        return super().fit(calibration)
