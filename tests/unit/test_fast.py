"""Single-step training: its images by hand, its looks, its recoveries, and a state that survives."""

import copy
import io
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from rdi import seeds
from rdi.attacks import Attack, Average, MainExit, MaxAverage, SingleExit, Wasserstein
from rdi.attacks.engine import Engine
from rdi.defenses import Adversarial, Fast, Standard, fast
from rdi.defenses.base import accuracy_per_exit
from rdi.defenses.guard import Guard
from rdi.errors import UserError
from rdi.exits import MultiExitNet

EPS = 0.1
ATTACK = Average(eps=EPS, step_size=0.05, steps=3)
OFF = {"guard_every": None}


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_net(*weights):
    """Exit k has the logits (w_k * x, 0) of a 1x2x2 image: the gradient of the loss at label 1 has the sign of w_k."""
    heads = []
    for weight in weights:
        layer = nn.Linear(4, 2, bias=False)
        layer.weight = nn.Parameter(torch.stack([torch.tensor(weight), torch.zeros(4)]))
        heads.append(nn.Sequential(nn.Flatten(), layer))
    return MultiExitNet([nn.Identity() for _ in weights], heads).eval()


ONE, OTHER = [1.0, -2.0, 3.0, -1.0], [-4.0, -1.0, 2.0, 5.0]
MIDDLE = torch.full((5, 1, 2, 2), 0.5)
LABELS = torch.ones(5, dtype=torch.long)


def noisy_by_hand(x, size, seed=3):
    uniform = torch.rand(x.shape, generator=stream(seed))
    return (x + size * (2 * uniform - 1)).clamp(0, 1)


@pytest.mark.parametrize(
    ("attack", "climbed"),
    [
        (SingleExit(exit=0, eps=EPS, step_size=0.01, steps=7), [1.0, -2.0, 3.0, -1.0]),
        (MainExit(eps=EPS, step_size=0.01, steps=7), [-4.0, -1.0, 2.0, 5.0]),
    ],
    ids=["single", "main"],
)
def test_the_image_is_noise_beyond_eps_and_one_full_step_from_there(attack, climbed):
    defense = Fast(attack=attack, noise=1.5, step=1.25, **OFF)
    found = defense.single_step_images(linear_net(ONE, OTHER), MIDDLE, LABELS, stream(3))
    sign = torch.tensor(climbed).sign().view(1, 1, 2, 2)
    torch.testing.assert_close(found, noisy_by_hand(MIDDLE, 1.5 * EPS) + 1.25 * EPS * sign)


def test_average_takes_one_gradient_of_the_mean_over_exits():
    net = linear_net(ONE, OTHER)
    defense = Fast(attack=ATTACK, **OFF)
    found = defense.single_step_images(net, MIDDLE, LABELS, stream(3))
    noisy = noisy_by_hand(MIDDLE, 2 * EPS).requires_grad_(True)
    logits = net(noisy)
    loss = sum(nn.functional.cross_entropy(logits[:, k], LABELS, reduction="sum") for k in range(2))
    (grad,) = torch.autograd.grad(loss, noisy)
    torch.testing.assert_close(found, noisy.detach() + EPS * grad.sign())


def test_max_average_takes_one_step_per_exit_and_keeps_the_worst():
    net = linear_net(ONE, OTHER)
    attack = MaxAverage(eps=EPS, step_size=0.05, steps=3)
    found = Fast(attack=attack, **OFF).single_step_images(net, MIDDLE, LABELS, stream(3))
    noisy = noisy_by_hand(MIDDLE, 2 * EPS)
    candidates = [noisy + EPS * torch.tensor(weight).sign().view(1, 1, 2, 2) for weight in (ONE, OTHER)]
    losses = []
    for x_adv in candidates:
        logits = net(x_adv)
        per_exit = [nn.functional.cross_entropy(logits[:, k], LABELS, reduction="none") for k in range(2)]
        losses.append(sum(per_exit) / 2)
    worst = torch.stack(losses).argmax(dim=0)
    torch.testing.assert_close(found, torch.stack(candidates)[worst, torch.arange(5)])


def test_the_noise_leaves_the_eps_ball_and_nothing_leaves_the_pixel_range(tiny, batch):
    net, (x, y) = tiny(shape=(1, 16, 16)), batch(count=6, shape=(1, 16, 16))
    found = Fast(attack=ATTACK, **OFF).single_step_images(net, x, y, stream(3))
    assert 2.9 * EPS < (found - x).abs().max() <= 3 * EPS + 1e-6
    assert ((found - x).abs() > 1.01 * EPS).float().mean() > 0.4
    assert (found.min(), found.max()) == (0, 1)


@pytest.mark.parametrize("attack", [ATTACK, MaxAverage(eps=EPS, step_size=0.05, steps=3)], ids=["average", "max_avg"])
def test_without_noise_it_is_fgsm(attack, tiny, batch):
    net, (x, y) = tiny(), batch(count=6)
    fgsm = replace(attack, steps=1, step_size=EPS, random_start=False, keep="last")
    found = Fast(attack=attack, noise=0, **OFF).single_step_images(net, x, y, stream())
    torch.testing.assert_close(found, fgsm(net, x, y))


@pytest.mark.parametrize(
    "settings",
    [{"restarts": 4}, {"keep": "last"}, {"random_start": False}, {"steps": 9}, {"rule": Wasserstein(1.0)}],
    ids=lambda settings: next(iter(settings)),
)
def test_how_the_attack_makes_its_many_steps_does_not_matter_to_the_one(settings, tiny, batch):
    net, (x, y) = tiny(), batch()
    plain, other = (Fast(attack=attack, **OFF) for attack in (ATTACK, replace(ATTACK, **settings)))
    first, second = (defense.single_step_images(net, x, y, stream(3)) for defense in (plain, other))
    assert torch.equal(first, second)


def test_a_step_longer_than_the_pixel_range_ends_at_its_border():
    attack = MainExit(eps=0.9, step_size=0.1, steps=2)
    found = Fast(attack=attack, step=2, **OFF).single_step_images(linear_net(ONE), MIDDLE, LABELS, stream())
    torch.testing.assert_close(found, (torch.tensor(ONE) > 0).float().view(1, 1, 2, 2).expand(5, 1, 2, 2))


def test_the_loss_is_the_hybrid_one_on_these_images(tiny, batch):
    net, (x, y) = tiny(), batch()
    loss, logs = Fast(attack=ATTACK, adversarial_weight=0.3, exit_weights=[1, 0, 2]).loss(net, x, y, stream(3))
    x_adv = Fast(attack=ATTACK).single_step_images(net, x, y, stream(3))

    def by_hand(images):
        logits = net(images)
        return sum(w * nn.functional.cross_entropy(logits[:, k], y) for k, w in ((0, 1), (2, 2)))

    torch.testing.assert_close(loss, 0.7 * by_hand(x) + 0.3 * by_hand(x_adv))
    assert torch.equal(logs["robust_accuracy"], accuracy_per_exit(net(x_adv), y))


def test_what_judges_the_training_is_the_multi_step_attack():
    assert Fast(attack=ATTACK).attack is ATTACK


@pytest.mark.parametrize(("steps", "size", "expected"), [(3, 0.05, (3, 0.05)), (40, 0.01, (10, 0.04))])
def test_the_guard_s_attack_is_short_and_reaches_as_far(steps, size, expected):
    attack = Fast(attack=Average(eps=0.3, step_size=size, steps=steps, restarts=2)).multi_step()
    assert (attack.steps, attack.step_size, attack.restarts, attack.eps) == (*expected, 1, 0.3)


def test_a_rule_of_its_own_keeps_its_step():
    attack = Fast(attack=Average(eps=0.3, steps=40, rule=Wasserstein(1.0))).multi_step()
    assert (attack.steps, attack.step_size, attack.rule) == (10, None, Wasserstein(1.0))


def test_a_look_reports_the_network_s_own_accuracy_in_eval_mode(tiny, batch):
    net, (x, y) = tiny(dropout=0.5).train(), batch(count=40)
    defense = Fast(attack=ATTACK, guard_images=32, engine=Engine())
    twin = copy.deepcopy(net).eval()
    _, logs = defense.loss(net, x, y, stream(3))
    rng = seeds.generator("cpu", 3, "guard")
    multi = ATTACK(twin, x[:32], y[:32], rng)
    single = Fast(attack=ATTACK).single_step_images(twin, x[:32], y[:32], rng)
    with torch.no_grad():
        torch.testing.assert_close(logs["guard_accuracy"], accuracy_per_exit(twin(multi), y[:32]))
        torch.testing.assert_close(logs["guard_single_step_accuracy"], accuracy_per_exit(twin(single), y[:32]))
    assert logs["guard_triggers"] == 0


@pytest.mark.parametrize("engine", [None, Engine()], ids=["plain", "engine"])
def test_a_guard_that_finds_nothing_changes_no_bit(engine, tiny, batch, monkeypatch):
    monkeypatch.setattr(Guard, "collapsed", lambda *rest: False)
    results = []
    for every in (None, 1):
        torch.manual_seed(0)
        net, defense = tiny(dropout=0.5).train(), Fast(attack=ATTACK, guard_every=every, engine=engine)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for step in range(3):
            loss, _ = defense.loss(net, *batch(count=8, seed=step), stream(step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        results.append(net.state_dict())
    first, second = results
    assert all(torch.equal(first[name], second[name]) for name in first)


class Scripted:
    """Stands in for the accuracies of the looks: per look multi-step, then single-step."""

    def __init__(self, *multi_step):
        self.values = [value for multi in multi_step for value in (multi, 0.9)]

    def __call__(self, logits_NEC, y):
        return torch.full((logits_NEC.shape[1],), self.values.pop(0))


@dataclass
class Journal:
    """Which images each step trained with, and what was said."""

    images: list
    warnings: list


def journal(defense, net, x, y, steps, monkeypatch):
    made = Journal([], [])
    monkeypatch.setattr(fast.logger, "warning", lambda text, *values: made.warnings.append(text % values))
    for step in range(steps):
        x_adv = {}
        original = defense.training_images
        monkeypatch.setattr(defense, "training_images", lambda *a, f=original, s=x_adv: s.setdefault("x", f(*a)))
        defense.loss(net, x, y, stream(step))
        monkeypatch.setattr(defense, "training_images", original)
        multi = ATTACK(net, x, y, stream(step))
        single = Fast(attack=ATTACK).single_step_images(net, x, y, stream(step))
        assert not torch.equal(multi, single)
        made.images.append("multi" if torch.equal(x_adv["x"], multi) else "single")
        if made.images[-1] == "single":
            assert torch.equal(x_adv["x"], single)
    return made


def test_a_collapse_is_announced_and_trained_away_and_the_next_one_twice_as_long(tiny, batch, monkeypatch):
    # looks before steps 0, 2, 4, ...: the second collapses; the one before step 8 collapses again
    script = Scripted(0.5, 0.0, 0.5, 0.5, 0.1, 0.5, 0.5, 0.5, 0.5)
    monkeypatch.setattr(fast, "accuracy_per_exit", script)
    net, (x, y) = tiny(), batch()
    defense = Fast(attack=ATTACK, guard_every=2, recover_steps=3)
    made = journal(defense, net, x, y, 17, monkeypatch)
    multi = [step for step, images in enumerate(made.images) if images == "multi"]
    assert multi == [2, 3, 4, 8, 9, 10, 11, 12, 13]
    assert script.values == []
    assert len(made.warnings) == 2
    assert "catastrophic overfitting after step 2 (number 1)" in made.warnings[0]
    assert "right on 0/0/0 % of the images (moving mean at best 50/50/50 %)" in made.warnings[0]
    assert "under the single step on 90/90/90 %. Training with 3 steps up to step 5" in made.warnings[0]
    assert "after step 8 (number 2)" in made.warnings[1]
    assert "up to step 14" in made.warnings[1]


def test_the_log_says_what_the_last_look_saw(tiny, batch, monkeypatch):
    monkeypatch.setattr(fast, "accuracy_per_exit", Scripted(0.5, 0.0))
    net, (x, y) = tiny(), batch()
    defense = Fast(attack=ATTACK, guard_every=2)
    seen = [defense.loss(net, x, y, stream())[1] for _ in range(4)]
    assert [logs["guard_triggers"].item() for logs in seen] == [0, 0, 1, 1]
    assert [logs["guard_accuracy"].tolist() for logs in seen] == [[0.5] * 3, [0.5] * 3, [0.0] * 3, [0.0] * 3]


def test_without_a_guard_nobody_looks(tiny, batch, monkeypatch):
    monkeypatch.setattr(fast, "accuracy_per_exit", Scripted())
    defense = Fast(attack=ATTACK, guard_every=None)
    for _ in range(2):
        _, logs = defense.loss(tiny(), *batch(), stream())
    assert not [name for name in logs if name.startswith("guard")]


def test_the_state_survives_a_file_and_an_empty_one_is_the_beginning(tiny, batch, monkeypatch):
    monkeypatch.setattr(fast, "accuracy_per_exit", Scripted(0.5, 0.1, 0.45))
    net, (x, y) = tiny(), batch()
    defense = Fast(attack=ATTACK, guard_every=1, recover_steps=2)
    for _ in range(3):
        defense.loss(net, x, y, stream())
    file = io.BytesIO()
    torch.save(defense.state(), file)
    file.seek(0)
    other = Fast(attack=ATTACK, guard_every=1, recover_steps=2)
    other.load_state(torch.load(file, weights_only=True))
    assert other.watch == defense.watch
    assert (other.watch.step, other.watch.triggers, other.watch.recover_until) == (3, 1, 3)
    other.load_state({})
    assert other.watch == Fast(attack=ATTACK).watch != defense.watch


def test_a_copy_for_a_dry_run_leaves_the_defense_as_it_is(tiny, batch):
    defense = Fast(attack=ATTACK, guard_every=1)
    before = defense.state()
    brief = copy.copy(defense)
    brief.attack = brief.attack.brief()
    brief.loss(tiny(), *batch(), stream())
    assert defense.state() == before != brief.state()


@pytest.mark.parametrize("defense", [Standard(), Adversarial(attack=ATTACK)], ids=["standard", "adversarial"])
def test_other_defenses_have_no_state_and_refuse_one(defense):
    assert defense.state() == {}
    defense.load_state({})
    with pytest.raises(ValueError, match="has no state"):
        defense.load_state(Fast(attack=ATTACK).state())


class Blind(Attack):
    """An attack without a gradient."""

    def run(self, model, x, y, generator):
        return x


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (Blind(eps=EPS), "one step of a gradient attack, and Blind is none: choose another attack"),
        (replace(ATTACK, steps=1), "needs at least 2 steps"),
        (replace(ATTACK, eps=0), r"attack\.eps must be in \(0, 1\]"),
    ],
)
def test_attacks_that_cannot_serve_are_refused_with_what_to_type(attack, message):
    with pytest.raises(UserError, match=message):
        Fast(attack=attack)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("noise", -1),
        ("step", 0),
        ("guard_every", 0),
        ("guard_images", 0),
        ("guard_steps", 1),
        ("guard_ratio", 2),
        ("recover_steps", 0),
        ("adversarial_weight", 2),
    ],
)
def test_values_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(UserError, match=rf"defense\.{option}"):
        Fast(attack=ATTACK, **{option: value})
