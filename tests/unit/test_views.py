"""Attacks on views of the network: Square and AutoAttack; and Transfer, which looks at another network."""

import logging
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rdi.attacks import Average, MainExit, SingleExit, Soft, Square, Surrogate, Transfer
from rdi.attacks.autoattack import AutoAttack
from rdi.attacks.square import squares
from rdi.attacks.views import ExitView, MeanView, PolicyView
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.runs.attack import build_suite
from rdi.thresholds import Entropy, ShareRule, ThresholdPolicy

EPS = 0.05
SHAPE = (3, 8, 8)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def scene(tiny, batch):
    """A net of three exits and ten classes, images, the policy's own answers as labels, the policy."""
    net, (x, _) = tiny(shape=SHAPE, classes=10), batch(count=16, shape=SHAPE, classes=10)
    with torch.no_grad():
        logits = net(x)
        policy = ShareRule(score=Entropy()).fit_logits(logits)
    exits = policy.choose(logits)
    assert len(exits.unique()) == 3
    return net, x, logits[torch.arange(len(x)), exits].argmax(dim=1), policy


def standing(net, policy, x, y):
    """Who the deployed policy still gets right."""
    with torch.no_grad():
        logits = net(x)
    return logits[torch.arange(len(x)), policy.choose(logits)].argmax(dim=1) == y


# -- views


def test_the_views_give_the_logits_and_gradients_of_what_they_show(scene):
    net, x, y, policy = scene
    logits = net(x.requires_grad_(True))
    taken = policy.choose(logits)
    shown = {
        PolicyView(net, policy): logits[torch.arange(len(x)), taken],
        MeanView(net): logits.mean(dim=1),
        **{ExitView(net, k): logits[:, k] for k in (0, 1, 2, -1)},
    }
    for view, expected in shown.items():
        torch.testing.assert_close(view(x), expected, rtol=1e-5, atol=1e-6)
        mine, theirs = (
            torch.autograd.grad(F.cross_entropy(z, y), x, retain_graph=True)[0] for z in (view(x), expected)
        )
        assert theirs.abs().max() > 0
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-8)


def test_the_view_of_an_exit_runs_nothing_behind_it(scene):
    net, x, _, _ = scene
    net.stages[2].register_forward_hook(lambda *_: pytest.fail("the last stage ran"))
    ExitView(net, 1)(x)


def test_for_an_attack_the_mean_of_logits_is_the_mean_of_the_log_softmax(scene):
    net, x, y, _ = scene
    logits, other = MeanView(net)(x), net(x).log_softmax(dim=2).mean(dim=1)
    difference = logits - other
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference))
    torch.testing.assert_close(F.cross_entropy(logits, y), F.cross_entropy(other, y))


def test_a_view_of_a_half_precision_copy_is_float32(scene):
    net, x, _, policy = scene
    net, x = net.to(torch.bfloat16), x.to(torch.bfloat16)
    for view in (PolicyView(net, policy), MeanView(net), ExitView(net, 0)):
        assert view(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "Policy"}, "attack.target must be policy, mean, each or the number of an exit; got 'Policy'"),
        ({"target": -2}, "attack.target must be at least -1"),
        ({"target": 0.5}, "attack.target must be a whole number"),
        ({"queries": 0}, "attack.queries must be at least 1"),
        ({"share": 0}, "attack.share must be in"),
        ({"sure": -1}, "attack.sure must be in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Square(eps=EPS, **settings)


def test_what_the_network_does_not_have_is_refused(scene):
    net, x, y, _ = scene
    cases = {
        "here are none: to train against, choose another": Square(eps=EPS),
        "thresholds are for 2 exits": Square(eps=EPS).for_policy(ThresholdPolicy(Entropy(), [0.5])),
        "attack.exit=3 does not exist": Square(eps=EPS, target=3),
        "each is for suites": Square(eps=EPS, target="each"),
    }
    for message, attack in cases.items():
        with pytest.raises(UserError, match=message):
            attack(net, x, y, stream())


def test_only_an_attack_on_the_policy_is_bound_to_one(scene):
    *_, policy = scene
    bound = Square(eps=EPS).for_policy(policy)
    assert bound.identity()["policy"] == repr(policy)
    for target in ("mean", 1):
        attack = Square(eps=EPS, target=target)
        assert attack.for_policy(policy) is attack
    each = Square(eps=EPS, target="each").per_exit(3)
    assert {suffix: one.target for suffix, one in each.items()} == {"_exit0": 0, "_exit1": 1, "_exit2": 2}


# -- square


class Staircase(nn.Module):
    """Round to steps of 0.02: the gradient is zero everywhere, the function hardly changes."""

    def forward(self, x):
        return (x * 50).round() / 50


def test_square_breaks_a_network_that_hides_its_gradient(scene):
    net, x, _, policy = scene
    net = MultiExitNet([nn.Sequential(Staircase(), net.stages[0]), *net.stages[1:]], net.heads)
    with torch.no_grad():
        logits = net(x)
    y = logits[torch.arange(len(x)), policy.choose(logits)].argmax(dim=1)
    pgd = Soft(eps=EPS, step_size=0.01, steps=20).for_policy(policy)(net, x, y, stream())
    square = Square(eps=EPS, queries=300).for_policy(policy)(net, x, y, stream())
    assert standing(net, policy, x, y).all()
    assert standing(net, policy, pgd, y).float().mean() > 0.6
    assert standing(net, policy, square, y).float().mean() < 0.3


@pytest.mark.parametrize("target", ["policy", "mean", 0, -1])
def test_square_fools_its_target_in_the_ball_the_same_way_for_the_same_seed(target, scene):
    net, x, _, policy = scene
    eps = 0.2  # the first exit of this net and the mean of exits withstand less
    attack = Square(eps=eps, queries=200, target=target).for_policy(policy)
    with torch.no_grad():
        y = attack.view(net)(x).argmax(dim=1)
        one, again, other = (attack(net, x, y, stream(seed)) for seed in (1, 1, 2))
        assert (attack.view(net)(one).argmax(dim=1) != y).float().mean() > 0.5
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert (one - x).abs().max() <= eps + 1e-6
    assert one.min() >= 0
    assert one.max() <= 1


def test_square_never_makes_a_sample_safer_and_keeps_what_is_fooled_already(scene):
    net, x, y, policy = scene
    wrong = (y + 1) % 10
    attack = Square(eps=EPS, queries=5, sure=0.0).for_policy(policy)
    assert torch.equal(attack(net, x, wrong, stream()), x)

    def lead(images):
        logits = attack.view(net)(images)
        true = logits.gather(1, y[:, None])[:, 0]
        return logits.scatter(1, y[:, None], -torch.inf).amax(dim=1) - true

    with torch.no_grad():
        clean = lead(x)
        few, more = (lead(replace(attack, queries=queries)(net, x, y, stream())) for queries in (1, 200))
    assert (few >= clean - 1e-6).all()
    assert (more >= clean - 1e-6).all()
    assert more.mean() > few.mean()


def test_the_chance_of_square_does_not_depend_on_who_has_left(scene):
    """A sample that is fooled at once, put into the batch, does not change the others' images."""
    net, x, y, policy = scene
    attack = Square(eps=0.01, queries=20).for_policy(policy)
    other = y.clone()
    other[3] = (y[3] + 1) % 10
    assert float(attack.sure) < 1
    first, second = attack(net, x, y, stream()), attack(net, x, other, stream())
    rest = [index for index in range(len(x)) if index != 3]
    torch.testing.assert_close(first[rest], second[rest])


def test_square_makes_no_query_for_who_has_left(scene):
    net, x, *_ = scene
    rows = []
    net.stages[0].register_forward_hook(lambda module, given, out: rows.append(len(out)))
    Square(eps=0.1, queries=50, target=1)(net, x, net.logits_at(x, [1])[:, 0].argmax(1), stream())
    rows = rows[1:]
    assert rows[0] == len(x)
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < len(x)


def test_the_squares_shrink_as_published():
    attack = Square(eps=EPS, queries=10_000)
    areas = [attack.side(query, 1000, 1000) ** 2 / 1e6 for query in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001)]
    assert areas == pytest.approx([0.8 / 2**k for k in (0, 0, 1, 2, 3, 4, 5, 6, 7, 8)], rel=0.01)
    assert attack.side(8001, 1000, 1000) ** 2 / 1e6 == pytest.approx(0.8 / 512, rel=0.03)
    assert replace(attack, queries=1000).side(21, 1000, 1000) == attack.side(210, 1000, 1000)
    assert attack.side(9999, 8, 8) == 1
    assert replace(attack, share=1.0).side(0, 28, 12) == 12


def test_one_square_changes_one_square():
    x = torch.full((3, 2, 6, 5), 0.5)
    places = torch.tensor([[0.0, 0.0], [0.99, 0.99], [0.5, 0.4]])
    signs = torch.tensor([[1.0, -1], [-1, 1], [1, 1]])[:, :, None, None]
    tried = squares(x, x, 0.1, 2, places, signs)
    for image, (top, left), sign in zip(tried, [(0, 0), (4, 3), (2, 1)], signs, strict=True):
        expected = torch.full((2, 6, 5), 0.5)
        expected[:, top : top + 2, left : left + 2] += 0.1 * sign
        torch.testing.assert_close(image, expected)
    again = squares(tried, x, 0.1, 2, places, signs)
    torch.testing.assert_close(again, squares(tried, x, 0.1, 2, places, -signs))
    assert (again != tried).flatten(1).any(dim=1).all()


# -- autoattack


@pytest.fixture
def package():
    """The tests that need the extra."""
    return pytest.importorskip("pyautoattack")


def test_without_the_package_there_is_one_line_that_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(UserError, match=r"^AutoAttack is not installed: pip install 'rdi\[autoattack\]'$"):
        AutoAttack(eps=EPS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "rand"}, "attack.version must be one of standard, plus"),
        ({"attacks": []}, "one or more different parts"),
        ({"attacks": ["square", "square"]}, "one or more different parts"),
        ({"attacks": ["pgd"]}, "attack.attacks must be one of"),
    ],
)
def test_settings_of_autoattack_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        AutoAttack(eps=EPS, **settings)


def test_the_standard_version_is_run_as_the_package_has_it(package, scene, monkeypatch):
    net, x, y, policy = scene
    seen = {}

    def spy(adversary, images, labels, *, batch_size):
        seen.update(vars(adversary), images=images, batch_size=batch_size)
        return images, labels

    monkeypatch.setattr(package.AutoAttack, "run_standard_evaluation", spy)
    images = x.to(memory_format=torch.channels_last)
    AutoAttack(eps=EPS).for_policy(policy)(net, images, y, stream())
    published = package.AutoAttack(net, eps=EPS)
    assert seen["attacks_to_run"] == published.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert (seen["epsilon"], seen["norm"], seen["batch_size"]) == (EPS, "Linf", len(x))
    assert seen["images"].is_contiguous()
    assert isinstance(seen["model"], PolicyView)
    own = ("model", "predict", "seed", "device", "logger")
    for part in ("apgd", "apgd_targeted", "fab", "square"):
        mine, theirs = (
            {k: v for k, v in vars(one).items() if k not in own} for one in (seen[part], vars(published)[part])
        )
        assert mine == theirs
    assert (seen["square"].n_queries, seen["apgd"].n_iter, seen["fab"].n_target_classes) == (5000, 100, 9)


@pytest.mark.parametrize("target", ["policy", "mean", 1])
@pytest.mark.parametrize(("eps", "attacks"), [(0.2, None), (0.02, ["apgd-ce", "apgd-t"])], ids=["standard", "apgd"])
def test_autoattack_fools_what_pgd_fools(eps, attacks, target, package, scene):
    net, x, y, policy = scene
    attack = AutoAttack(eps=eps, target=target, attacks=attacks).for_policy(policy)
    view = attack.view(net)
    with torch.no_grad():
        y = view(x).argmax(dim=1)
    settings = {"eps": eps, "step_size": eps / 5, "steps": 10}
    pgd = {
        "policy": Soft(**settings).for_policy(policy),
        "mean": Average(**settings),
        1: SingleExit(exit=1, **settings),
    }[target](net, x, y, stream())
    x_adv = attack(net, x, y, stream())
    assert (x_adv - x).abs().max() <= eps + 1e-7
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1
    with torch.no_grad():
        by_pgd, by_autoattack = (view(images).argmax(dim=1) != y for images in (pgd, x_adv))
    assert int(by_pgd.sum()) > 0 or (eps, target) == (0.02, "mean")
    assert not (by_pgd & ~by_autoattack).any()
    # as published: who cannot be fooled keeps the image
    assert torch.equal(x_adv[~by_autoattack], x[~by_autoattack])


def test_autoattack_leaves_the_process_as_it_was(package, scene, capfd):
    net, x, y, policy = scene
    attack = AutoAttack(eps=0.2).for_policy(policy)
    ours, theirs = sys.gettrace(), lambda *_: None
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    sys.settrace(theirs)
    try:
        attack(net, x, y, stream())
        kept = sys.gettrace()
    finally:
        sys.settrace(ours)
    assert kept is theirs
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()
    log = logging.getLogger("auto-attack")
    assert (log.propagate, log.handlers, log.level) == (True, [], logging.NOTSET)
    assert capfd.readouterr() == ("", "")


def test_autoattack_depends_on_the_seed_alone(package, scene):
    net, x, y, policy = scene
    attack = AutoAttack(eps=EPS, attacks=["apgd-ce"]).for_policy(policy)
    one, again, other = (attack(net, x, y, stream(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_shortened_set_is_not_called_autoattack(package):
    whole = AutoAttack(eps=EPS)
    assert whole.identity() == {
        "attack": "AutoAttack",
        "eps": EPS,
        "target": "policy",
        "policy": None,
        "version": "standard",
        "package": f"pyautoattack {package.__version__}",
    }
    assert whole.label("autoattack_mean") == "autoattack_mean"
    short = AutoAttack(eps=EPS, attacks=["apgd-ce", "square"])
    assert short.identity()["attack"] == "apgd-ce+square"
    assert short.label("autoattack") == "apgd-ce+square"
    assert short.label("my_AutoAttack_mean") == "my_apgd-ce+square_mean"
    node = {"_target_": "rdi.attacks.AutoAttack", "eps": EPS, "attacks": ["apgd-ce", "square"]}
    assert list(build_suite({"autoattack": node})) == ["apgd-ce+square"]


def test_too_few_classes_are_refused_with_what_would_work(package, tiny, batch):
    net, (x, y) = tiny(), batch()
    with pytest.raises(UserError, match=r"apgd-t needs at least 10 classes, this network has 4: take attack.attacks="):
        AutoAttack(eps=EPS, target="mean").brief()(net, x, y, stream())
    x_adv = AutoAttack(eps=EPS, target="mean", attacks=["apgd-ce", "apgd-dlr"])(net, x, y, stream())
    assert x_adv.shape == x.shape


def test_the_rehearsal_of_autoattack_is_short(package, scene):
    net, x, y, policy = scene
    rows = []
    net.stages[0].register_forward_hook(lambda module, given, out: rows.append(len(out)))
    attack = AutoAttack(eps=EPS).for_policy(policy)
    assert torch.equal(attack.brief()(net, x, y, stream()), x)
    assert len(rows) <= 2
    assert not torch.equal(attack(net, x, y, stream()), x), "the attack itself is not changed by it"


def test_what_the_package_finds_odd_is_said_once(package, scene, caplog):
    net, x, y, policy = scene
    net = MultiExitNet([nn.Sequential(Staircase(), net.stages[0]), *net.stages[1:]], net.heads)
    attack = AutoAttack(eps=1e-3, attacks=["apgd-dlr"]).for_policy(policy)
    for _ in range(2):
        attack(net, x, y, stream())
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "zero gradient" in said[0]
    assert "flags_doc" not in said[0]


# -- transfer


def surrogate(net, name="static"):
    return Surrogate(net, name, "ab" * 32, SHAPE)


def test_with_the_network_itself_as_surrogate_transfer_is_the_direct_attack(scene):
    net, x, y, _ = scene
    inner = MainExit(eps=EPS, step_size=0.01, steps=5)
    transfer = Transfer(surrogate=surrogate(net), inner=inner)
    assert torch.equal(transfer(net, x, y, stream(3)), inner(net, x, y, stream(3)))
    assert transfer.eps == EPS


def test_transfer_takes_its_gradients_from_the_surrogate_alone(scene, tiny):
    net, x, y, policy = scene
    static = tiny(exits=1, shape=SHAPE, classes=10, seed=5)
    inner = MainExit(eps=EPS, step_size=0.01, steps=5)
    transfer = Transfer(surrogate=surrogate(static), inner=inner).for_policy(policy)
    rows = []
    net.stages[0].register_forward_hook(lambda module, given, out: rows.append((len(out), out.requires_grad)))
    x_adv = transfer(net, x, y, stream(3))
    assert rows == [(1, False)], "the number of classes"
    assert torch.equal(x_adv, inner(static, x, y, stream(3)))
    assert all(p.requires_grad and p.grad is None for p in [*net.parameters(), *static.parameters()])


def test_the_identity_of_a_transfer_names_the_surrogate_and_the_inner_attack(scene):
    net, *_ = scene
    transfer = Transfer(surrogate=surrogate(net), inner=SingleExit(exit="each", eps=EPS, step_size=0.01, steps=5))
    identity = transfer.identity()
    assert (identity["attack"], identity["surrogate"], identity["surrogate_sha256"]) == (
        "Transfer",
        "static",
        "ab" * 32,
    )
    assert (identity["inner.attack"], identity["inner.steps"]) == ("SingleExit", 5)
    assert list(transfer.per_exit(9)) == ["_exit0", "_exit1", "_exit2"], "the surrogate's exits"
    assert transfer.per_exit(9)["_exit1"].inner.exit == 1
    assert transfer.brief().inner.steps == 1


def test_a_surrogate_for_other_images_or_classes_is_refused(scene, tiny):
    net, x, y, _ = scene
    inner = MainExit(eps=EPS, step_size=0.01, steps=5)
    other = Transfer(surrogate=replace(surrogate(net), shape=(1, 28, 28)), inner=inner)
    with pytest.raises(UserError, match=r"the surrogate static is for images of 1x28x28, these are 3x8x8 \(CxHxW\)"):
        other(net, x, y, stream())
    other = Transfer(surrogate=surrogate(tiny(shape=SHAPE, classes=7)), inner=inner)
    with pytest.raises(UserError, match="the surrogate static has 7 classes, this network has 10"):
        other(net, x, y, stream())
