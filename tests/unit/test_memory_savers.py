"""What saves memory while training: a batch in parts, and activations that are computed again."""

import pytest
import torch
from torch import nn

from helpers.training import ATTACK, Memory, assert_same_tensors, recipe
from rdi.attacks import SingleExit
from rdi.data import Digits
from rdi.defenses import (
    Adversarial,
    Boosted,
    Certified,
    Composed,
    CrossEntropy,
    Fast,
    GradientSign,
    MinMaxAttacks,
    MinMaxWeights,
    Pairing,
    Standard,
)
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.recomputing import price, recomputed
from rdi.training import fit
from rdi.training_settings import Settings

DEFENSES = {
    "standard": lambda: Standard(),
    "adversarial": lambda: Adversarial(attack=ATTACK),
    "guarded": lambda: Fast(attack=ATTACK, guard_every=2, guard_images=2),
    "alternating": lambda: Composed(
        attack=ATTACK,
        terms=[CrossEntropy(images="adversarial"), Pairing(distance="squared", weight=2.0, ramp=0.5)],
        crafting=GradientSign(objectives=["cross_entropy", "squared"]),
        exit_weights=MinMaxWeights(rate=0.5, regulariser=0.1),
    ),
    "min-max attacks": lambda: MinMaxAttacks(
        attack=ATTACK,
        attacks=[ATTACK, SingleExit(eps=0.4, step_size=0.3, steps=2, exit=0)],
        attack_weights=MinMaxWeights(rate=0.5, regulariser=0.1),
    ),
    "certified": lambda: Certified(attack=ATTACK, warm_up=0.3, ramp=0.5),
    "boosted": lambda: Boosted(attack=ATTACK, frozen=True),
}


@pytest.fixture(scope="module")
def data():
    return Digits(name="digits", calibration=24, size=12).load()


def network(norm=False, dropout=0.0):
    torch.manual_seed(1)
    stages, width = [], 1
    for _ in range(2):
        block = [nn.Conv2d(width, 4, 3, padding=1, stride=2), *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU()]
        stages.append(nn.Sequential(nn.Sequential(*block), nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())))
        width = 4
    heads = [nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * side**2, 10)) for side in (6, 3)]
    return MultiExitNet(stages, heads)


def trained(data, defense, net, steps=4, recompute=False, **settings):
    torch.manual_seed(5)
    options = Settings(seed=3, evaluations=1, calibration_samples=8, augment="crop_flip", recompute=recompute)
    fit(net, defense, data.train, data.calibration, recipe(steps, batch_size=9, **settings), options, Memory())
    return net.state_dict()


@pytest.mark.parametrize("name", DEFENSES)
def test_a_batch_in_parts_is_trained_on_as_the_whole_one(name, data):
    first, second = DEFENSES[name](), DEFENSES[name]()
    whole = trained(data, first, network())
    # 9 images in 4 parts: of 2, 2, 2 and 3
    parts = trained(data, second, network(), accumulate=4)
    for key, tensor in whole.items():
        torch.testing.assert_close(parts[key], tensor, rtol=1e-3, atol=1e-5)
    assert second.state().keys() == first.state().keys()
    for key, value in first.state().items():
        torch.testing.assert_close(torch.as_tensor(second.state()[key]), torch.as_tensor(value), rtol=1e-3, atol=1e-5)


def test_more_parts_than_images_are_refused():
    with pytest.raises(UserError, match=r"optim.accumulate must be at most optim.batch_size=9, got 10"):
        recipe(batch_size=9, accumulate=10)


def test_activations_computed_again_change_nothing_and_are_not_kept(data):
    """BatchNorm counts each batch once, dropout drops the same, and the blocks are as before in the end."""
    plain = trained(data, Adversarial(attack=ATTACK), network(norm=True, dropout=0.3))
    net = network(norm=True, dropout=0.3)
    assert_same_tensors(trained(data, Adversarial(attack=ATTACK), net, recompute=True), plain)
    assert not any("forward" in vars(module) for module in net.modules())
    found = price(net, torch.rand(4, 1, 12, 12))
    assert found.kept < 0.85 * found.kept_before
    assert f"{found.kept_before / 2**20:.2f}" in str(found)


def test_nothing_is_computed_again_in_eval_mode():
    net, calls = network(), []
    net.stages[0][0][0].register_forward_hook(lambda *_: calls.append(None))
    for training, passes in ((True, 2), (False, 1)):
        with recomputed(net.train(training)):
            net(torch.rand(2, 1, 12, 12)).sum().backward()
        assert len(calls) == passes
        calls.clear()
