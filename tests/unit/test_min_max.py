"""Min-max over exits and over attacks: against plain loops, at both ends of the regulariser, and resumed."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.training import ATTACK, SMALL, Memory, StopAfter, assert_same_tensors, recipe
from rdi.attacks import Average, MainExit, MinMax, SingleExit
from rdi.attacks.simplex import MinMaxWeights
from rdi.data import Digits
from rdi.defenses import Composed, CrossEntropy, MinMaxAttacks
from rdi.errors import Interrupted, UserError
from rdi.exits import MultiExitNet
from rdi.training import fit

EPS = 0.1
BALL = {"eps": EPS, "step_size": 0.03, "steps": 5, "random_start": False, "keep": "last"}


def bisected(values):
    """The projection onto the simplex, by bisection of what is subtracted."""
    low, high = min(values) - 1, max(values)
    for _ in range(80):
        middle = (low + high) / 2
        if sum(max(value - middle, 0) for value in values) > 1:
            low = middle
        else:
            high = middle
    return [max(value - low, 0) for value in values]


def by_hand(net, x, y, *, rate, regulariser):
    """Image by image, exit by exit, with lists for weights."""
    found = []
    for image, label in zip(x, y, strict=True):
        x_adv, weights = image.clone(), [1 / net.exits] * net.exits
        for step in range(BALL["steps"]):
            x_adv.requires_grad_(True)
            losses = [-net(x_adv[None])[0, k].log_softmax(0)[label] for k in range(net.exits)]
            if step:
                moved = [
                    w + rate * (-float(loss.detach()) - regulariser * (w - 1 / net.exits))
                    for w, loss in zip(weights, losses, strict=True)
                ]
                weights = bisected(moved)
            total = sum(w * loss for w, loss in zip(weights, losses, strict=True))
            gradient = torch.autograd.grad(total, x_adv)[0]
            x_adv = x_adv.detach() + BALL["step_size"] * gradient.sign()
            x_adv = torch.minimum(torch.maximum(x_adv, image - EPS), image + EPS).clamp(0, 1)
        found.append(x_adv)
    return torch.stack(found)


@pytest.mark.parametrize(("rate", "regulariser"), [(0.3, 0.0), (0.5, 1.0)])
def test_the_attack_is_the_published_loop(rate, regulariser, tiny, batch):
    net, (x, y) = tiny().double(), batch(count=3)
    x = x.double()
    found = MinMax(**BALL, rate=rate, regulariser=regulariser)(net, x, y, fast=False)
    torch.testing.assert_close(found, by_hand(net, x, y, rate=rate, regulariser=regulariser))
    assert not torch.equal(found, Average(**BALL)(net, x, y, fast=False)), "the weights make a difference"


def test_a_large_regulariser_is_the_average_attack(tiny, batch):
    net, (x, y) = tiny().double(), batch(count=6)
    x = x.double()
    found = MinMax(**BALL, rate=1e-4, regulariser=1e3)(net, x, y, fast=False)
    torch.testing.assert_close(found, Average(**BALL)(net, x, y, fast=False))


def linear(weights):
    heads = []
    for weight in weights:
        layer = nn.Linear(2, 2, bias=False)
        layer.weight.data = torch.tensor([[0.0, 0.0], weight])
        heads.append(nn.Sequential(nn.Flatten(), nn.Sequential(Shift(), layer)))
    return MultiExitNet([nn.Identity() for _ in weights], heads)


class Shift(nn.Module):
    def forward(self, x):
        return x - 0.6


def test_without_a_regulariser_the_exit_that_resists_falls_too():
    # exit 0 is steep along both pixels, exit 1 falls only where the second pixel goes the other way
    net = linear([[60.0, 20.0], [0.0, -1.0]])
    x, y = torch.full((1, 1, 1, 2), 0.55), torch.zeros(1, dtype=torch.long)
    x[..., 1] = 0.65
    ball = {**BALL, "eps": 0.2, "step_size": 0.05, "steps": 20, "keep": "best"}

    def wrong(attack):
        return (net(attack(net, x, y)).argmax(dim=2) != y[:, None])[0].tolist()

    assert wrong(Average(**ball)) == [True, False]
    assert wrong(MinMax(**ball, rate=0.05, regulariser=0.0)) == [True, True]


@pytest.mark.parametrize("regulariser", [0.0, 0.7, 5.0])
def test_iterates_are_compared_by_the_least_of_all_mixtures(regulariser):
    chance = torch.Generator().manual_seed(0)
    losses = 3 * torch.rand(4, 3, generator=chance, dtype=torch.float64)
    attack = MinMax(**BALL, regulariser=regulariser)
    found = attack.value(losses)
    weights = torch.distributions.Dirichlet(torch.full((3,), 0.5, dtype=torch.float64)).sample((20000,))
    weights = torch.cat([weights, torch.eye(3, dtype=torch.float64)])
    values = weights @ losses.T + regulariser / 2 * (weights - 1 / 3).square().sum(dim=1, keepdim=True)
    least = values.amin(dim=0)
    assert bool((found <= least + 1e-9).all())
    torch.testing.assert_close(found, least, atol=0.02, rtol=0)


def test_settings_are_part_of_the_name_and_refused_out_of_range():
    assert MinMax(**BALL).identity()["regulariser"] == 4.0
    assert not any(name.startswith("_") for name in MinMax(**BALL).identity())
    for option in ({"rate": 0}, {"regulariser": -1}, {"loss": "none"}):
        with pytest.raises(UserError, match=f"attack.{next(iter(option))}"):
            MinMax(**BALL, **option)


def attacks():
    common = {"eps": 0.1, "step_size": 0.05, "steps": 1}
    return [MainExit(**common), SingleExit(exit=0, **common)]


def test_the_weights_of_attacks_follow_their_losses(tiny, batch):
    net, (x, y) = tiny(), batch(count=6)
    rule = MinMaxWeights(rate=0.5, regulariser=1.0, floor=0.0)
    defense = MinMaxAttacks(attack=ATTACK, attacks=attacks(), attack_weights=rule, adversarial_weight=0.25)
    weights = [0.5, 0.5]
    for step in range(2):
        loss, logs = defense.loss(net, x, y, torch.Generator().manual_seed(step))
        stream = torch.Generator().manual_seed(step)
        images = [attack(net, x, y, stream, fast=False) for attack in attacks()]

        def summed(x):
            return sum(F.cross_entropy(net(x)[:, k], y) for k in range(3))

        losses = [summed(one) for one in images]
        mixed = sum(w * one for w, one in zip(weights, losses, strict=True))
        torch.testing.assert_close(loss, 0.75 * summed(x) + 0.25 * mixed)
        moved = [w + 0.5 * (float(one.detach()) / 3 - (w - 0.5)) for w, one in zip(weights, losses, strict=True)]
        weights = bisected(moved)
        assert logs["attack_weights"].tolist() == pytest.approx(weights, abs=1e-5)
        right = torch.stack([net(one).argmax(dim=2) == y[:, None] for one in images]).all(dim=0)
        torch.testing.assert_close(logs["robust_accuracy"], right.float().mean(dim=0))


def over_attacks():
    return MinMaxAttacks(attack=ATTACK, attacks=attacks(), attack_weights=MinMaxWeights(rate=0.5))


def over_exits():
    terms = [CrossEntropy(images="clean", weight=0.5), CrossEntropy(images="adversarial", weight=0.5)]
    return Composed(attack=ATTACK, terms=terms, exit_weights=MinMaxWeights(rate=0.5))


@pytest.mark.parametrize(("make", "logged"), [(over_attacks, "attack_weights"), (over_exits, "exit_weights")])
def test_weights_are_logged_and_resumed(make, logged, paper_net):
    digits = Digits(name="digits", calibration=24, size=16).load()
    net = paper_net("smallcnn", (1, 16, 16))

    def train(store, **more):
        torch.manual_seed(5)
        run = partial(fit, copy.deepcopy(net), make(), digits.train, digits.calibration, recipe(), SMALL, store)
        return run(**more)

    whole, first = Memory(), Memory()
    train(whole)
    found = whole.lines[-1][1][logged]
    assert sum(found) == pytest.approx(1)
    assert max(found) > min(found)
    with pytest.raises(Interrupted):
        train(first, stop=StopAfter(2))
    second = Memory(first.state)
    second.weights = first.weights
    train(second)
    assert_same_tensors(second.weights["last"], whole.weights["last"])
    assert second.lines[-1][1][logged] == found


def test_too_few_attacks_and_a_foreign_state_are_refused():
    with pytest.raises(UserError, match="at least two attacks"):
        MinMaxAttacks(attack=ATTACK, attacks=attacks()[:1], attack_weights=MinMaxWeights())
    with pytest.raises(ValueError, match="no such state"):
        over_attacks().load_state({"weights": torch.ones(3)})
