"""rdi.train on values: the weights of the command line, from Python objects, with a run folder or without."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import torch

import rdi
from helpers.composing import composed
from helpers.training import ATTACK, assert_same_tensors, recipe
from rdi.backbones import resnet, smallcnn
from rdi.compression import ATMC, L0, Channels, layer_weights
from rdi.config import build, canonised, describe
from rdi.data import ArrayFile, Digits
from rdi.defenses import Adversarial, Standard
from rdi.errors import UserError
from rdi.exits import NoExits
from rdi.gates import Gates
from rdi.records import Manifest, read
from rdi.runs.identity import identity
from rdi.training_settings import Settings

FEW = Settings(seed=3, evaluations=1, calibration_samples=8)
SGD = partial(torch.optim.SGD, momentum=0.9)


def digits():
    return Digits(name="digits", calibration=24, size=16)


@pytest.fixture
def images(batch):
    x, y = batch(count=40)
    return (x * 255).to(torch.uint8), y


def test_a_network_is_trained_on_arrays_and_left_as_it_was(tiny, images):
    net = tiny()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    found = rdi.train(net, images, Adversarial(attack=ATTACK), recipe(2), settings=FEW, device="cpu")
    assert_same_tensors(net.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.exits == 3
    assert not found.training
    assert not torch.equal(found.heads[0][3].weight, net.heads[0][3].weight)
    again = rdi.train(net, images, Adversarial(attack=ATTACK), recipe(2), settings=FEW, device="cpu")
    assert_same_tensors(again.state_dict(), found.state_dict())


def test_a_run_has_the_weights_that_come_without_one_and_is_a_run_like_any_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = (partial(smallcnn, dropout=0.1), digits(), Adversarial(attack=ATTACK), recipe(2, optimizer=SGD))
    plain = rdi.train(*given, settings=FEW, device="cpu")
    stored = rdi.train(*given, settings=FEW, device="cpu", run="runs/mine")
    assert_same_tensors(stored.state_dict(), plain.state_dict())
    run = rdi.Run("runs/mine", "cpu")
    assert_same_tensors(run.network.state_dict(), plain.state_dict())
    assert run.policy().exits == 3
    manifest = run.manifest
    assert manifest.identity == identity(manifest.config)
    assert manifest.config["backbone"] == {"_target_": "rdi.backbones.smallcnn", "dropout": 0.1}
    assert manifest.config["optim"]["optimizer"] == {
        "_target_": "torch.optim.SGD",
        "_partial_": True,
        "momentum": 0.9,
    }
    assert manifest.config["threat"] == {"eps": 0.1, "norm": "linf", "step_size": 0.05, "steps": 2, "test_steps": 20}
    assert set(manifest.config) == set(composed("train"))
    # the same values once more open it, others do not
    seconds = read(run.folder.manifest, Manifest).ended
    rdi.train(*given, settings=FEW, device="cpu", run="runs/mine")
    assert read(run.folder.manifest, Manifest).ended == seconds
    with pytest.raises(UserError, match="is finished already"):
        rdi.train(*given, settings=Settings(seed=4), device="cpu", run="runs/mine")


def test_a_gated_network_is_trained_as_the_command_line_would_with_a_run_and_without(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbone = partial(resnet, blocks=[1, 2, 1], channels=[4, 6, 8])
    given = (backbone, digits(), Adversarial(attack=ATTACK), recipe(3))
    how = {"settings": FEW, "device": "cpu", "exits": NoExits(), "gates": Gates(channels=True, share=0.7, alone=0.0)}
    plain, stored = rdi.train(*given, **how), rdi.train(*given, **how, run="runs/gated")
    assert_same_tensors(stored.state_dict(), plain.state_dict())
    assert plain.gated
    manifest = rdi.Run("runs/gated", "cpu").manifest
    assert manifest.choices["gates"] == "gates"
    assert set(manifest.config["gates"]) == set(composed("train", "gates=layers_channels")["gates"])
    assert 0 < json.loads((tmp_path / "runs/gated/train.jsonl").read_text().splitlines()[-1])["executed_share"] < 1.1
    # what is gated keeps its gates; the cost term moves them
    cheap = rdi.train(plain, *given[1:], **{**how, "gates": Gates(channels=True, share=0.7, weight=50, alone=0.0)})
    assert [*cheap.state_dict()] == [*plain.state_dict()]
    free = rdi.train(plain, *given[1:], **{**how, "gates": None})
    began, moved, left = (float(one.stages[0].controller.run.bias.detach()) for one in (plain, cheap, free))
    assert abs(moved - began) > 2 * abs(left - began)


@pytest.mark.parametrize(
    ("compression", "choice"),
    [
        (lambda: L0(ratio=0.1), "l0"),
        (lambda: Channels(widths=[2, 3, 3, 4]), "channels"),
        (lambda: ATMC(ratio=0.2, bits=8), "atmc"),
    ],
    ids=["l0", "channels", "atmc"],
)
def test_a_compressed_network_is_trained_with_a_run_and_without(compression, choice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbone = partial(resnet, blocks=[1, 2, 1], channels=[4, 6, 8])
    given = (backbone, digits(), Adversarial(attack=ATTACK), recipe(3))
    how = {"settings": FEW, "device": "cpu", "exits": NoExits()}
    whole = rdi.train(*given, **how)
    plain = rdi.train(*given, **how, compression=compression())
    stored = rdi.train(*given, **how, compression=compression(), run="runs/small")
    assert_same_tensors(stored.state_dict(), plain.state_dict())
    left = sum(int(weight.count_nonzero()) for weight in layer_weights(plain).values())
    if choice != "atmc":  # whose product of factors is dense
        share = left / sum(weight.numel() for weight in layer_weights(whole).values())
        assert share <= (0.1 if choice == "l0" else 0.6)
    manifest = rdi.Run("runs/small", "cpu").manifest
    assert manifest.choices["compression"] == choice
    assert set(manifest.config["compression"]) == set(composed("train", f"compression={choice}")["compression"])


def test_what_compression_does_not_go_with_is_refused(tmp_path):
    given = (partial(resnet, blocks=[1, 2, 1], channels=[4, 6, 8]), digits(), Adversarial(attack=ATTACK), recipe(1))
    how = {"settings": FEW, "device": "cpu", "exits": NoExits()}
    with pytest.raises(UserError, match="gates and compression do not go together"):
        rdi.train(*given, **how, compression=L0(ratio=0.1), gates=Gates(channels=True, share=0.7))
    with pytest.raises(UserError, match="is read with run="):
        rdi.train(*given, **how, compression=L0(ratio=0.1, start="runs/dense"))
    with pytest.raises(UserError, match="compression must be a Compression, got float"):
        rdi.train(*given, **how, compression=0.1)


def test_arrays_in_a_file_are_a_source(tmp_path, images):
    np.savez(tmp_path / "mine.npz", images=images[0].numpy(), labels=images[1].numpy().astype(np.int32), test_start=30)
    source = ArrayFile(name="mine", root=str(tmp_path), file="mine.npz", calibration=5)
    data = source.load()
    assert {name: len(rows) for name, rows in data.indices().items()} == {
        "train": 25,
        "calibration": 5,
        "validation": 0,
        "test": 10,
    }
    assert torch.equal(data.test.images, images[0][30:])
    assert torch.equal(data.test.labels, images[1][30:])
    assert describe(source)["root"] == str(tmp_path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((4, 1, 8, 8), np.uint8)}, "has no array 'labels'"),
        ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.arange(4)}, "images must be uint8 N x C x H x W"),
        ({"images": np.zeros((4, 1, 8, 8)), "labels": np.arange(4)}, "images must be uint8 N x C x H x W"),
        ({"images": np.zeros((4, 1, 8, 8), np.uint8), "labels": np.ones(4)}, "must be whole numbers"),
        ({"images": np.zeros((4, 1, 8, 8), np.uint8), "labels": np.arange(3)}, "one label for each of 4 images"),
        ({"images": np.zeros((4, 1, 8, 8), np.uint8), "labels": -np.arange(4)}, "must be whole numbers from 0"),
        ({"images": np.zeros((4, 1, 8, 8), np.uint8), "labels": np.array([1, 2, 3, 1])}, "no image is of class 0"),
        ({"images": np.zeros((4, 1, 8, 8), np.uint8), "labels": np.zeros(4, int)}, "all images are of one class"),
        ({"images": np.zeros((0, 1, 8, 8), np.uint8), "labels": np.zeros(0, int)}, "holds no labels"),
        ({"images": np.zeros((4, 8, 8, 3), np.uint8), "labels": np.arange(4)}, "move the channels before the rows"),
        (
            {"images": np.zeros((4, 1, 8, 8), np.uint8), "labels": np.arange(4), "test_start": np.arange(2)},
            "must be one whole number",
        ),
    ],
)
def test_a_file_of_other_arrays_is_one_line(arrays, message, tmp_path):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=message):
        ArrayFile(name="mine", root=str(tmp_path), file="x.npz", calibration=1).load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": torch.nn.Linear(2, 2)}, "keeps what makes its network again"),
        ({"data": (torch.zeros(4), torch.zeros(4))}, "keeps where its images come from"),
        ({"defense": Standard()}, r"threat=rdi\.Threat\(eps=\.\.\."),
        ({"recipe": recipe(optimizer=lambda weights: None)}, "not part of a module that another process could import"),
        ({"settings": Settings(seed=0, augment="crop")}, "say it to the data alone"),
    ],
)
def test_mistakes_are_one_line(change, message, tmp_path):
    given = {"model": smallcnn, "data": digits(), "defense": Adversarial(attack=ATTACK), "recipe": recipe(), **change}
    with pytest.raises(UserError, match=message) as caught:
        rdi.train(**given, run=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.long), "images must be a uint8 tensor"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4), "labels must be an int64 tensor of 4 labels"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), -torch.ones(4, dtype=torch.long), "labels must be at least 0"),
    ],
)
def test_arrays_of_another_kind_are_refused(images, labels, message, tiny):
    with pytest.raises(UserError, match=message):
        rdi.train(tiny(), (images, labels), Standard(), recipe())


CHOICES = [
    *("attack=soft_apgd", "attack=average_wrm", "defense=fast", "defense=min_max", "defense=min_max_attacks"),
    *("defense=carried", "exits=lean_mlp", "threshold=risk", "optim=robust", "data=cifar10_jpeg", "data=mnist"),
    *("gates=none", "gates=layers_channels"),
]


@pytest.mark.parametrize("choice", CHOICES)
def test_an_object_is_described_as_it_was_configured(choice):
    """So that a run that is made of objects is the run that is made of their names."""
    group = choice.partition("=")[0]
    config = composed("train", choice)
    found = describe(build(config[group], group))
    assert_within(canonised(config[group]), found)
    assert describe(build(found, group)) == found


def assert_within(part, whole):
    """Every option of a node is in the other, where those that keep their default may be more."""
    if isinstance(part, dict):
        for key, value in part.items():
            assert_within(value, whole[key])
    elif isinstance(part, list):
        for one, other in zip(part, whole, strict=True):
            assert_within(one, other)
    else:
        assert part == whole
