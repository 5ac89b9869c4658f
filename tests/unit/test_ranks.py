"""Processes that share every batch: the same training as one, whatever the loss couples the images by."""

import pytest
import torch
from torch import nn

from helpers.ranks import on_ranks
from helpers.training import ATTACK, Memory, assert_same_tensors, recipe
from rdi import defenses as losses
from rdi.attacks import MainExit, MaxAverage
from rdi.attacks.engine import Engine
from rdi.attacks.simplex import MinMaxWeights
from rdi.data import Digits
from rdi.errors import RankLost, UserError
from rdi.exits import MultiExitNet
from rdi.runs import train
from rdi.seeds import generator, uniform
from rdi.thresholds import Entropy
from rdi.training import fit
from rdi.training_settings import Settings

DEFENSES = {
    "standard": lambda: losses.Standard(),
    "adversarial": lambda: losses.Adversarial(attack=MaxAverage(eps=0.1, step_size=0.05, steps=2), engine=Engine()),
    # the guard looks at 5 of 9 images, of which the second process has one
    "fast": lambda: losses.Fast(attack=ATTACK, guard_every=1, guard_images=5),
    # coupled in every way: nuclear norm, weights that follow the losses, moved weights, remembered images
    "composed": lambda: losses.Composed(
        attack=ATTACK,
        crafting=losses.Carried(),
        terms=[
            losses.CrossEntropy(images="adversarial"),
            losses.Pairing(distance="squared", reference="carried"),
            losses.Pairing(distance="nuclear"),
        ],
        exit_weights=MinMaxWeights(),
        weight_perturbation=losses.WeightPerturbation(),
    ),
    "decision": lambda: losses.Composed(
        attack=ATTACK, terms=[losses.DeployedDecision(score=Entropy())], crafting=losses.GradientSign()
    ),
    "min_max": lambda: losses.MinMaxAttacks(
        attack=ATTACK, attacks=[ATTACK, MainExit(eps=0.1, step_size=0.05, steps=1)], attack_weights=MinMaxWeights()
    ),
    "certified": lambda: losses.Certified(attack=ATTACK, warm_up=0.0, ramp=0.5),
}


def network():
    """Two exits with BatchNorm and dropout."""
    torch.manual_seed(1)
    stages, heads, width = [], [], 1
    for _ in range(2):
        stages.append(nn.Sequential(nn.Conv2d(width, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4), nn.ReLU()))
        heads.append(nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.LazyLinear(10)))
        width = 4
    net = MultiExitNet(stages, heads)
    net(torch.zeros(2, 1, 16, 16))
    return net


def trained(ranks, names, steps, batchnorm="synchronised"):
    """Name of a loss -> losses of all steps, weights that were kept, lines of the log."""
    found = {}
    data = Digits(name="digits", calibration=24, size=16).load()
    for name in names:
        defense, net, store = DEFENSES[name](), network(), Memory()
        seen = []

        def loss(*batch, plain=defense.loss, seen=seen):
            value, logs = plain(*batch)
            seen.append(float(value.detach()))
            return value, logs

        defense.loss = loss
        torch.manual_seed(5)
        settings = Settings(seed=3, evaluations=1, calibration_samples=24, augment="crop_flip", batchnorm=batchnorm)
        # 9 images do not split evenly
        length = recipe(steps, batch_size=9, lr=0.02, average=0.9 if name == "adversarial" else None)
        fit(net, defense, data.train, data.calibration, length, settings, store, ranks=ranks)
        found[name] = seen, store.weights["last"], store.lines
    return found


def all_of(ranks):
    """What the tests below look at, in one go: a process takes seconds to start."""
    return {
        "trained": trained(ranks, DEFENSES, 4),
        "long": trained(ranks, ["standard"], 50),
        "local": trained(ranks, ["standard"], 3, "local"),
        "noise": noise(ranks),
        "agreed": agreed(ranks),
        "images": other_images(ranks),
    }


def other_images(ranks):
    """What every rank says when the images are those of the leading one on no other."""
    data = {"_target_": "rdi.data.Digits", "name": "digits", "calibration": 24, "size": 16}
    config = {"device": "cpu", "threads": 1, "data": data}
    try:
        if ranks.rank:
            ranks.serve()
        ranks.call(train.assist, "run", config, "0" * 64, None, {}, {})
        with ranks.agreed():
            return None
    except UserError as error:
        return str(error)


def noise(ranks):
    share = ranks.share(5)
    stream = share.generator(generator("cpu", 3, "step", 1))
    found = [uniform((share.size, 2), stream, torch.device("cpu"), torch.float32) for _ in range(2)]
    return [share.gather(one) for one in found], share.gather(torch.arange(5)[share.rows])


def agreed(ranks):
    """What every rank says when the last one cannot go on, and whether one of them was told to stop."""
    said = None
    try:
        with ranks.agreed():
            if ranks.rank == ranks.count - 1:
                raise UserError("no images here")
    except UserError as error:
        said = str(error), error.everywhere
    return said, ranks.any(ranks.rank == 1), ranks.any(False)


@pytest.fixture(scope="module")
def alone():
    return on_ranks(1, all_of)[0]


@pytest.fixture(scope="module")
def two():
    return on_ranks(2, all_of)


@pytest.mark.parametrize("name", DEFENSES)
def test_two_processes_train_as_one_does(name, alone, two):
    losses, _, lines = alone["trained"][name]
    for other in two:
        torch.testing.assert_close(torch.tensor(other["trained"][name][0]), torch.tensor(losses), rtol=1e-4, atol=0)
        assert (
            other["trained"][name][2][-1][1]["calibration_clean_accuracy"] == lines[-1][1]["calibration_clean_accuracy"]
        )
    assert_same_tensors(two[0]["trained"][name][1], two[1]["trained"][name][1])


def test_fifty_steps_have_the_same_losses_to_rounding(alone, two):
    found = [torch.tensor(one["long"]["standard"][0]) for one in (alone, two[0])]
    assert len(found[0]) == 50
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=0)


def test_local_batchnorm_normalises_by_the_images_of_each_process_and_keeps_one_network(alone, two):
    first, second = (one["local"]["standard"] for one in two)
    assert_same_tensors(first[1], second[1])
    assert abs(first[0][0] / alone["long"]["standard"][0][0] - 1) > 1e-4


def test_noise_belongs_to_the_image_not_to_the_process(alone, two):
    for other in two:
        assert all(torch.equal(*pair) for pair in zip(other["noise"][0], alone["noise"][0], strict=True))
        assert torch.equal(other["noise"][1], torch.arange(5))


def test_a_mistake_or_a_signal_of_one_process_is_one_of_all(alone, two):
    assert [one["agreed"] for one in two] == [(("rank 1: no images here", True), True, False)] * 2
    assert alone["agreed"] == (("no images here", False), False, False)


def test_other_images_on_one_process_are_refused_by_all(alone, two):
    assert alone["images"] is None
    assert two[0]["images"] == two[1]["images"]
    assert two[0]["images"].startswith("rank 1: the images of digits differ from those that the run was made with")


def lost(ranks):
    if ranks.rank == 1:
        return "gone"
    try:
        ranks.average([torch.ones(3)])
    except RankLost as error:
        return str(error)


def test_a_process_whose_other_is_gone_says_so():
    first, second = on_ranks(2, lost)
    assert second == "gone"
    assert first.startswith("another rank has ended (")
    assert first.endswith("what was saved last is kept")
