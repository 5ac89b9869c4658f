"""Processes that share every batch: the same training as one, whatever the loss couples the images by."""

from contextlib import suppress

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from helpers.ranks import on_ranks
from helpers.training import ATTACK, Memory, StopAfter, assert_same_tensors, recipe
from rdi import defenses as losses
from rdi.attacking import attack_split
from rdi.attacks import MainExit, MaxAverage
from rdi.attacks.engine import Engine
from rdi.attacks.simplex import MinMaxWeights
from rdi.backbones import resnet
from rdi.compression import ATMC
from rdi.data import Digits
from rdi.errors import Interrupted, RankLost, UserError
from rdi.exits import CustomExits, MultiExitNet, PoolLinear
from rdi.gates import Gates
from rdi.ranks import ALONE
from rdi.runs import rank_group, train
from rdi.seeds import generator, uniform
from rdi.thresholds import Entropy
from rdi.training import fit
from rdi.training_settings import Settings

LONG = 50
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


def training(
    ranks, name, steps, batchnorm="synchronised", state=None, stop=lambda: False, gates=None, compression=None
):
    """Losses of all steps, and the store that it ends with. state: of a training that was stopped."""
    data = Digits(name="digits", calibration=24, size=16).load()
    defense, store = DEFENSES[name](), Memory(state)
    net = network() if gates is None else gated(gates, data)
    seen, plain = [], defense.loss

    def loss(*batch):
        value, logs = plain(*batch)
        seen.append(float(value.detach()))
        return value, logs

    defense.loss = loss
    torch.manual_seed(5)
    settings = Settings(seed=3, evaluations=1, calibration_samples=24, augment="crop_flip", batchnorm=batchnorm)
    # 9 images do not split evenly
    length = recipe(steps, batch_size=9, lr=0.02, average=0.9 if name == "adversarial" else None)
    with suppress(Interrupted):
        sharing = {"gates": gates, "compression": compression, "ranks": ranks, "stop": stop}
        fit(net, defense, data.train, data.calibration, length, settings, store, **sharing)
    return torch.tensor(seen), store


def gated(gates, data):
    """A ResNet of four blocks and two exits, three of whose blocks have gates."""
    torch.manual_seed(1)
    attach = CustomExits(taps=[2], heads=[PoolLinear])
    return gates.attach(attach(resnet(data.shape, data.classes, blocks=[1, 2, 1], channels=[4, 6, 8])), data.shape)


def all_of(ranks):
    """What the tests below look at, in one go: a process takes long to start."""
    return {
        "trained": {name: training(ranks, name, 4) for name in DEFENSES},
        # the gates alone in the first step
        "gated": training(ranks, "adversarial", 4, gates=Gates(channels=True, share=0.8, alone=0.25)),
        "compressed": training(ranks, "standard", 4, compression=ATMC(ratio=0.5)),
        "long": training(ranks, "standard", LONG),
        "stopped": training(ranks, "standard", LONG, stop=StopAfter(LONG // 2)) if ranks.count == 2 else None,
        "local": training(ranks, "standard", 3, "local"),
        "bank": bank(ranks),
        "noise": noise(ranks),
        "agreed": agreed(ranks),
        "images": other_images(ranks),
        "lost": lost(ranks) if ranks.count == 2 else None,  # last of all
    }


def some_of(ranks, state):
    """The same of more processes. state: of the training that was stopped."""
    return {
        "long": training(ranks, "standard", LONG),
        "bank": bank(ranks),
        "gone on": training(ranks, "standard", LONG, state=state),
    }


def bank(ranks):
    """Logits and images of an attack whose last batch is smaller, as bytes."""
    split = Digits(name="digits", calibration=24, size=16).load().test.sample(20)
    parts = list(attack_split(network(), split, ATTACK, seed=3, batch_size=6, label="average", ranks=ranks))
    return [torch.cat(found).numpy().tobytes() for found in zip(*[(p.logits, p.images) for p in parts], strict=True)]


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


def lost(ranks):
    """What a process says whose other one has left."""
    if ranks.rank == 1:
        dist.destroy_process_group()
        return None
    try:
        ranks.average([torch.ones(3)])
    except RankLost as error:
        return str(error)


@pytest.fixture(scope="module")
def alone():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield on_ranks(1, all_of)[0]
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two():
    return on_ranks(2, all_of)


@pytest.fixture(scope="module")
def four(two):
    return on_ranks(4, some_of, two[0]["stopped"][1].state)


def assert_same_losses(found, wanted):
    assert len(found)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", DEFENSES)
def test_two_processes_train_as_one_does(name, alone, two):
    losses, store = alone["trained"][name]
    judged = "calibration_clean_accuracy"
    for other in two:
        found, its = other["trained"][name]
        assert_same_losses(found, losses)
        assert its.lines[-1][1][judged] == store.lines[-1][1][judged]
    assert_same_tensors(*(other["trained"][name][1].weights["last"] for other in two))


def test_two_processes_train_gates_as_one_does(alone, two):
    losses, store = alone["gated"]
    for other in two:
        found, its = other["gated"]
        assert_same_losses(found, losses)
        share = [one.lines[-1][1]["executed_share"] for one in (its, store)]
        assert share[0] == pytest.approx(share[1], abs=1e-5)
        for name, weight in its.weights["last"].items():
            torch.testing.assert_close(weight, store.weights["last"][name], atol=1e-4, rtol=1e-3)
    assert_same_tensors(*(other["gated"][1].weights["last"] for other in two))


def test_two_processes_train_factors_as_one_does(alone, two):
    losses, store = alone["compressed"]
    for other in two:
        found, its = other["compressed"]
        assert_same_losses(found, losses)
        for name, weight in its.weights["last"].items():
            torch.testing.assert_close(weight, store.weights["last"][name], atol=1e-4, rtol=1e-3)
    assert_same_tensors(*(other["compressed"][1].weights["last"] for other in two))


def test_fifty_steps_have_the_same_losses_to_rounding(alone, two, four):
    losses = alone["long"][0]
    assert len(losses) == 50
    for other in (*two, *four):
        assert_same_losses(other["long"][0], losses)


def test_a_training_stopped_on_two_processes_goes_on_with_one_and_with_four(alone, two, four):
    losses, (begun, store) = alone["long"][0], two[0]["stopped"]
    assert_same_losses(begun, losses[:25])
    assert_same_losses(training(ALONE, "standard", LONG, state=store.state)[0], losses[25:])
    for other in four:
        assert_same_losses(other["gone on"][0], losses[25:])


def test_banks_are_the_bytes_of_one_process_and_only_the_leading_one_has_them(alone, two, four):
    assert [len(part) for part in alone["bank"]] == [20 * 2 * 10 * 4, 20 * 16 * 16 * 4]
    for first, *others in (two, four):
        assert first["bank"] == alone["bank"]
        assert not any(other["bank"] for other in others)


def test_local_batchnorm_normalises_by_the_images_of_each_process_and_keeps_one_network(alone, two):
    (first, one), (_, other) = (each["local"] for each in two)
    assert_same_tensors(one.weights["last"], other.weights["last"])
    assert abs(first[0] / alone["long"][0][0] - 1) > 1e-4


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


def test_a_process_whose_other_is_gone_says_so(two):
    assert two[0]["lost"].startswith("another rank has ended (")
    assert two[0]["lost"].endswith("what was saved last is kept")


def test_what_torchrun_restarts_for_is_said_once_and_where_it_looks(tmp_path, monkeypatch):
    for attempt, (text, before) in enumerate([("no images", False), ("no images", True), ("no GPU", False)]):
        file = tmp_path / f"attempt_{attempt}" / "0" / "error.json"
        file.parent.mkdir(parents=True)
        monkeypatch.setenv(rank_group.ERROR_FILE, str(file))
        monkeypatch.setenv(rank_group.RESTARTED, str(attempt))
        assert rank_group.said_before(text) is before
        assert ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file)).message == text
    monkeypatch.delenv(rank_group.ERROR_FILE)
    assert not rank_group.said_before("no GPU")
