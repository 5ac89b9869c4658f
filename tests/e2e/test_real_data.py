"""The real data sets and the authors' released weights, where they are (RDI_DATA, RDI_REFERENCE)."""

import json
import os
from pathlib import Path

import pytest
import torch

import rdi as api
from helpers.commands import ROOT
from rdi.data import Torchvision, to_float
from rdi.folders import RunFolder
from rdi.runs import datasets
from rdi.storage import sha256

pytestmark = pytest.mark.data

DATA = os.environ.get("RDI_DATA", "")
MNIST = "1934b35f0e63b63d9aa4885cee58aab705a6fb58d24c643a28acbe7f073b4b0a"
REFERENCE = Path(os.environ.get("RDI_REFERENCE", ROOT.parent / "shared" / "reference"))
WEIGHTS = REFERENCE / "rdi_resnet38_cifar10_official.pth.tar"
TINY = "tracking=none threads=2 evaluations=1 calibration_samples=64 optim.epochs=null optim.iterations=5"


@pytest.fixture(autouse=True)
def root(elsewhere, monkeypatch):
    """RDI_DATA again, which the other tests take away."""
    if not DATA:
        pytest.skip("RDI_DATA is not set")
    monkeypatch.setenv("RDI_DATA", DATA)
    return Path(DATA)


def test_mnist_has_its_splits_and_fingerprint(root):
    data = Torchvision(
        name="mnist", dataset="MNIST", root=str(root), download=False, calibration=5000, split_seed=0, augment="none"
    ).load()
    assert [len(data.split(name)) for name in ("train", "calibration", "test")] == [55000, 5000, 10000]
    assert data.shape == (1, 28, 28)
    assert min(data.test.indices) == 60000
    assert not set(data.train.indices) & set(data.calibration.indices)
    assert data.fingerprint == MNIST


def test_a_short_training_on_mnist(rdi, tmp_path):
    result = rdi(f"train run=runs/mnist data=mnist attack=average attack.steps=1 optim.batch_size=32 {TINY}")
    assert result.status == 0, result.err
    manifest = json.loads((tmp_path / "runs" / "mnist" / "manifest.json").read_text())
    assert manifest["data"]["fingerprint"] == MNIST
    assert "5 steps of 32 images" in result.err


def test_the_released_weights_work(rdi, tmp_path):
    if not WEIGHTS.is_file():
        pytest.skip(f"{WEIGHTS} is not here: set RDI_REFERENCE")
    line = f"import checkpoint={WEIGHTS} run=runs/official data=cifar10_jpeg data.calibration_from=test"
    result = rdi(f"{line} data.calibration=200 threads=2")
    assert result.status == 0, result.err
    folder = RunFolder(tmp_path / "runs" / "official")
    test = datasets.run_data(folder, folder.read_finished()).test.sample(500)
    with torch.no_grad():
        right = api.load(folder.path)(to_float(test.images)).argmax(dim=2) == test.labels[:, None]
    assert right.shape[1] == 7
    assert float(right[:, -1].double().mean()) > 0.8
    manifest = json.loads((folder.path / "manifest.json").read_text())
    thresholds = json.loads((folder.path / "thresholds" / "entropy.json").read_text())
    assert thresholds["checkpoint_sha256"] == manifest["checkpoint_sha256"]
    assert manifest["inputs"] == {WEIGHTS.name: sha256(WEIGHTS)}
    for command in ("attack run=runs/official suite=quick samples=8 threat.test_steps=1", "evaluate run=runs/official"):
        assert rdi(f"{command} tracking=none" if "evaluate" in command else command).status == 0
    assert "worst of 1" in rdi("evaluate run=runs/official tracking=none").out
