"""`rdi import weights=` makes a run of a network that was trained elsewhere, which is attacked and judged as any."""

import json

import pytest
import torch
from safetensors.torch import load_file

import rdi as package
from rdi.backbones import smallcnn
from rdi.exits import PaperExits

LINE = "import backbone=smallcnn exits=paper run=runs/mine threads=1"


@pytest.fixture
def mine(tmp_path):
    """A network of somebody's, as DataParallel saves it."""
    torch.manual_seed(0)
    net = PaperExits()(smallcnn((1, 28, 28), 10))
    torch.save({"state_dict": {f"module.{name}": one for name, one in net.state_dict().items()}}, "mine.pt")
    return net


def test_a_network_of_somebodys_is_attacked_and_judged(rdi, mine, tmp_path):
    result = rdi(f"{LINE} weights=mine.pt")
    assert result.status == 0, result.err
    stored = load_file(tmp_path / "runs" / "mine" / "checkpoint.safetensors")
    assert all(torch.equal(stored[name], tensor) for name, tensor in mine.state_dict().items())
    manifest = json.loads((tmp_path / "runs" / "mine" / "manifest.json").read_text())
    assert (manifest["command"], manifest["choices"]["backbone"]) == ("import", "smallcnn")
    result = rdi("attack run=runs/mine attack=average attack.steps=1 samples=4 threads=1")
    assert result.status == 0, result.err
    judged = rdi("evaluate run=runs/mine tracking=none")
    assert judged.status == 0, judged.err
    assert "average" in judged.out
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(package.load("runs/mine", "cpu")(x), mine.eval()(x))


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        (
            "weights=mine.pt exits=none",
            "the weights belong to another network (missing in the file: stages.0.1.0.weight",
        ),
        ("weights=mine.pt backbone=resnet38 data=digits", "the weights belong to another network (missing in the file"),
        ("checkpoint=mine.pt", "choose the backbone it belongs to"),
        ("weights=mine.pt checkpoint=mine.pt", "one of them"),
        ("", "give weights=FILE"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(options, phrase, rdi, mine, tmp_path):
    line = " ".join(word for word in LINE.split() if word.split("=")[0] not in options)
    result = rdi(f"{line} {options}")
    assert result.status == 2
    assert len(result.errors) == 1
    assert phrase in result.errors[0]
    assert not (tmp_path / "runs").exists()
