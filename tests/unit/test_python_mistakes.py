"""Objects of another kind, and images of another size, are one line wherever Python code hands them over."""

from functools import partial
from itertools import starmap

import numpy as np
import pytest
import torch
from torch import nn

import rdi
from rdi.attacks import MaxAverage
from rdi.backbones import smallcnn
from rdi.data import Digits
from rdi.defenses import Adversarial
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.gates import Gates
from rdi.thresholds import Entropy, ShareRule, ThresholdPolicy

ATTACK = MaxAverage(eps=0.1, step_size=0.1, steps=1)
POLICY = ThresholdPolicy(Entropy(), [0.5, 0.5])
X, Y = torch.rand(20, 1, 8, 8), torch.arange(20) % 4
GREY = (255 * X).byte()
NO_POLICY = "policy must be a Policy, got float"
OTHER_SHAPE = r"the network does not take images of 3x8x8 \(CxHxW\)"
COLOURED = torch.rand(20, 3, 8, 8)


def recipe(**changes):
    sgd = partial(torch.optim.SGD, lr=0.1)
    return rdi.Recipe(**{"optimizer": sgd, "batch_size": 8, "lr": 0.1, "iterations": 1, **changes})


def train(model, data=(GREY, Y), defense=None, optim=None, **more):
    settings = more.pop("settings", rdi.Settings(seed=0, evaluations=1))
    return rdi.train(model, data, defense or Adversarial(attack=ATTACK), optim or recipe(), settings=settings, **more)


def frozen(net):
    return net.requires_grad_(False)


def kept(net, **more):
    del net
    return train(smallcnn, Digits(name="digits", calibration=50, test=50), run="nowhere", **more)


MISTAKES = {
    "a score for a rule": (lambda net: rdi.calibrate(net, Entropy(), X, Y), "rule must be a Rule, got Entropy: give"),
    "a class for a rule": (lambda net: rdi.calibrate(net, ShareRule, X, Y), "got the class ShareRule itself"),
    "coloured images": (lambda net: rdi.evaluate(net, COLOURED, Y, POLICY), OTHER_SHAPE),
    "channels last": (lambda net: rdi.attack(net, ATTACK, X.permute(0, 2, 3, 1), Y), "does not take images of 8x8x1"),
    "an attack called by a number": (lambda net: rdi.attack(net, {1: ATTACK}, X, Y), "attacks are called by text"),
    "a policy of attack": (lambda net: rdi.attack(net, ATTACK, X, Y, policy=0.5), NO_POLICY),
    "a policy of certify": (lambda net: rdi.certify(net, X, Y, 0.5, eps=0.1), NO_POLICY),
    "no policy of certify": (
        lambda net: rdi.certify(net, X, Y, None, eps=0.1),
        "policy must be a Policy, got NoneType",
    ),
    "a policy of the predictor": (lambda net: rdi.AdaptivePredictor(net, 0.5), NO_POLICY),
    "a policy of export": (lambda net: rdi.export(net, 0.5, GREY, "nowhere"), NO_POLICY),
    "a seed below 0": (lambda net: rdi.attack(net, ATTACK, X, Y, seed=-1), "seed must be at least 0, got -1"),
    "a seed in words": (lambda net: rdi.evaluate(net, X, Y, POLICY, ATTACK, seed="a"), "seed must be a whole number"),
    "fast in words": (lambda net: rdi.attack(net, ATTACK, X, Y, fast="no"), "fast must be true or false, got 'no'"),
    "fast of one attack": (lambda net: ATTACK(net, X, Y, fast="no"), "fast must be true or false, got 'no'"),
    "linear in words": (lambda net: rdi.certify(net, X, Y, POLICY, eps=0.1, linear="no"), "linear must be true or"),
    "a seed for a generator": (lambda net: ATTACK(net, X, Y, 0), "generator must be a Generator, got int"),
    "a score's name": (
        lambda net: ThresholdPolicy("entropy", [0.5]),
        "score must be a score, as rdi.thresholds.Entropy",
    ),
    "a score's class": (lambda net: ThresholdPolicy(Entropy, [0.5]), "score must be a score"),
    "one threshold": (lambda net: ThresholdPolicy(Entropy(), 0.5), "thresholds must list a number for each exit"),
    "a threshold in words": (lambda net: ThresholdPolicy(Entropy(), ["a"]), "thresholds must list a number"),
    "a shape of two": (lambda net: rdi.AdaptivePredictor(net, POLICY).costs((8, 8)), r"shape must be \(C, H, W\)"),
    "another shape": (
        lambda net: rdi.AdaptivePredictor(net, POLICY).describe((3, 8, 8), 4),
        "does not take images of 3x8x8",
    ),
    "no samples": (
        lambda net: rdi.AdaptivePredictor(net, POLICY).describe((1, 8, 8), 0),
        "samples must be at least 1",
    ),
    "functions for modules": (lambda net: MultiExitNet([abs], [abs]), "stages and heads must each list modules"),
    "an export of an array": (lambda net: rdi.export(net, POLICY, GREY.numpy(), "nowhere"), "images must be a Tensor"),
    "an export that comes from a tensor": (
        lambda net: rdi.export(net, POLICY, GREY, "nowhere", origin=X),
        "origin must be plain values by name",
    ),
    "an export that comes from a module": (
        lambda net: rdi.export(net, POLICY, GREY, "nowhere", origin={"by": net}),
        "origin must be plain values by name",
    ),
    "an export of a layer": (lambda net: rdi.export(nn.Identity(), POLICY, GREY, "nowhere"), "is no MultiExitNet"),
    "an export for coloured images": (
        lambda net: rdi.export(net, POLICY, (255 * COLOURED).byte(), "nowhere"),
        OTHER_SHAPE,
    ),
    "floats to calibrate on": (
        lambda net: rdi.export(net, POLICY, GREY, "nowhere", precision="int8", calibration=X),
        "calibration must be uint8 images of the size of the others, got torch.float32",
    ),
    "too few names": (
        lambda net: rdi.export(net, POLICY, GREY, "nowhere", class_names=["a"]),
        "class_names must list a name for each of 4 classes",
    ),
    "letters for names": (
        lambda net: rdi.export(net, POLICY, GREY, "nowhere", class_names="abcd"),
        "class_names must list a name for each of 4 classes",
    ),
    "a defense's class": (
        lambda net: train(net, defense=Adversarial),
        "got the class Adversarial itself: give one, as",
    ),
    "an attack for a defense": (lambda net: train(net, defense=ATTACK), "defense must be a Defense, got MaxAverage"),
    "a mapping for a recipe": (lambda net: train(net, optim={"lr": 0.1}), "recipe must be a Recipe, got dict"),
    "a mapping for settings": (lambda net: train(net, settings={"seed": 1}), "settings must be a Settings, got dict"),
    "a name for gates": (lambda net: train(net, gates="layers"), "gates must be a NoGates, got str"),
    "a name for exits": (lambda net: train(smallcnn, exits="paper"), "exits must put exits on a backbone"),
    "a name for a rule": (lambda net: kept(net, threshold="entropy"), "threshold must be a Rule, got str"),
    "a mapping for a threat": (lambda net: kept(net, threat={"eps": 0.1}), "threat must be a Threat, got dict"),
    "images alone": (
        lambda net: train(net, GREY),
        r"data must be a Source, a DataSet, or \(images, labels\), got Tensor",
    ),
    "pairs": (lambda net: train(net, list(zip(GREY, Y, strict=True))), "data must be a Source"),
    "coloured training images": (lambda net: train(net, ((255 * COLOURED).byte(), Y)), OTHER_SHAPE),
    "a network's class": (
        lambda net: train(MultiExitNet),
        r"model must be a MultiExitNet, or a function \(shape, clas",
    ),
    "a backbone's name": (lambda net: train("smallcnn"), "model must be a MultiExitNet, or a function"),
    "another function": (lambda net: train(lambda: net), "model must be a MultiExitNet, or a function"),
    "a function of a network": (lambda net: train(lambda shape, classes: net), "must be a Backbone, got MultiExitNet"),
    "a frozen network": (lambda net: train(frozen(net)), "nothing of the model can be trained"),
    "no device": (lambda net: train(net, device=None), "device=None is not here"),
    "an unknown augmentation": (
        lambda net: train(net, settings=rdi.Settings(seed=0, augment="turn")),
        "augment must be one of none, crop",
    ),
    "a layout in words": (lambda net: rdi.Settings(seed=0, channels_last="no"), "channels_last must be true or false"),
    "recomputing in words": (lambda net: rdi.Settings(seed=0, recompute="no"), "recompute must be true or false"),
    "one milestone": (lambda net: recipe(milestones=0.5), "optim.milestones must list shares of the length"),
    "a milestone in words": (lambda net: recipe(milestones="0.5"), "optim.milestones must list shares of the length"),
    "decay in words": (lambda net: recipe(decay_vectors="no"), "optim.decay_vectors must be true or false"),
    "gates of a number": (lambda net: Gates(channels=1, share=0.5), "gates.channels must be true or false, got 1"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_in_python_is_one_line(what, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, said = MISTAKES[what]
    with pytest.raises(UserError, match=said) as caught:
        call(tiny())
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_training_inside_no_grad_is_the_same_training_and_inference_mode_has_none(tiny):
    plain = train(tiny())
    with torch.no_grad():
        inside = train(tiny())
    assert all(starmap(torch.equal, zip(plain.state_dict().values(), inside.state_dict().values(), strict=True)))
    with torch.inference_mode(), pytest.raises(UserError, match="training follows gradients"):
        train(tiny())


def test_a_seed_of_numpy_is_that_number(tiny):
    net = tiny()
    plain, other = (rdi.attack(net, ATTACK, X, Y, seed=seed) for seed in (3, np.int64(3)))
    assert torch.equal(plain["max_average"].images, other["max_average"].images)
