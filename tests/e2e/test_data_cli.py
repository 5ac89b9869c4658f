"""What the commands say of the images: where they are, what was left out, what was trained on before."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.commands import TINY
from rdi.data import Digits
from rdi.records import Manifest, read

SMALL = f"{TINY} exits=none attack=average data.size=16"
OWN = f"{TINY} exits=none attack=average data=imagefolder data.mode=L data.calibration=20 optim.batch_size=16"
COMPRESSED = "compression=l0 compression.ratio=0.5 compression.start=runs/a"


def refused(result, *phrases):
    assert result.status == 2
    assert len(result.errors) == 1
    assert "Traceback" not in result.err
    for phrase in phrases:
        assert phrase in result.errors[0]


def write_images(root, split, part):
    """Files of the digits in `split`, below root/part."""
    for n, (image, label) in enumerate(zip(split.images[:, 0].numpy(), split.labels.tolist(), strict=True)):
        folder = root / part / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{n}.png")


@pytest.fixture(scope="module")
def digits():
    return Digits(name="digits", calibration=300, test=400, size=16).load()


def test_a_start_that_was_trained_on_held_out_images_is_refused(rdi, digits, tmp_path):
    assert rdi(f"train run=runs/a {SMALL}").status == 0
    line = f"train run=runs/b {SMALL} {COMPRESSED}"
    counts = "176 of the 300 calibration images and 251 of the 400 test images of this run"
    refused(rdi(f"{line} data.split_seed=1"), f"start=runs/a was trained on {counts}", "split_seed=0 there")
    assert not (tmp_path / "runs" / "b").exists()
    refused(rdi(f"{line} data.calibration=310"), "was trained on 10 of the 310 calibration images of this run")
    refused(rdi(f"{line} data.validation=50"), "was trained on 50 of the 50 validation images of this run")
    assert rdi(line).status == 0

    # the same images as files of another data set, in other places
    write_images(tmp_path / "files", digits.test, "train")
    write_images(tmp_path / "files", digits.train, "test")
    own = f"train run=runs/c {OWN} data.root=files"
    refused(rdi(f"{own} {COMPRESSED}"), "was trained on 1097 of the 1097 test images of this run")

    # through a run between, trained on other images
    shutil.rmtree(tmp_path / "files" / "test")
    write_images(tmp_path / "files", digits.calibration, "test")
    result = rdi(f"{own} {COMPRESSED}")
    assert result.status == 0, result.err
    start = COMPRESSED.replace("runs/a", "runs/c")
    refused(rdi(f"train run=runs/d {SMALL} {start}"), "runs/c was trained on 380 of the 400 test images")
    other = f"train run=runs/d {SMALL} {start} data.split_seed=1"
    first = rdi(other)
    refused(first, "runs/c was trained on", "test images")
    # the file that says so is made again where it is lost or damaged
    for damage in ("lost", "damaged"):
        for run in ("a", "c"):
            file = tmp_path / "runs" / run / "trained_on.npz"
            file.unlink(missing_ok=True)
            if damage == "damaged":
                file.write_bytes(b"garbage")
        assert rdi(other).errors == first.errors
    shutil.rmtree(tmp_path / "files")
    refused(rdi(other), "which images start=runs/c was trained on cannot be told: no folder ")


def test_a_training_begins_with_the_weights_of_another_run(rdi, tmp_path):
    assert rdi(f"train run=runs/a {SMALL}").status == 0
    # a rate too small to move a weight visibly: what comes out is what went in
    line = f"train run=runs/b {SMALL} start=a optim.lr=1e-12 keep=last"
    assert rdi(line).status == 0
    before, after = (load_file(tmp_path / "runs" / name / "checkpoint.safetensors") for name in "ab")
    learned = [key for key in before if key.endswith(("weight", "bias"))]
    assert learned
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in learned)
    manifest = json.loads((tmp_path / "runs" / "b" / "manifest.json").read_text())
    assert list(manifest["inputs"]) == ["a/checkpoint.safetensors"]
    # its images count as trained on
    refused(rdi(f"{line} run=runs/c data.split_seed=1"), "start=runs/a was trained on", "split_seed=0 there")
    refused(rdi(f"train run=runs/d {SMALL} start=nowhere"), "there is no run nowhere here or in runs/")
    # of a training that was stopped, those of its last evaluation
    stopped = tmp_path / "runs" / "a"
    (stopped / "done").unlink()
    (stopped / "checkpoint.safetensors").rename(stopped / "last.safetensors")
    line = line.replace("runs/b", "runs/e")
    assert rdi(line).status == 0
    again = load_file(tmp_path / "runs" / "e" / "checkpoint.safetensors")
    assert all(torch.equal(after[key], again[key]) for key in after)
    manifest = json.loads((tmp_path / "runs" / "e" / "manifest.json").read_text())
    assert manifest["inputs"] == {
        "a/last.safetensors": hashlib.sha256((stopped / "last.safetensors").read_bytes()).hexdigest()
    }
    (stopped / "last.safetensors").unlink()
    line = line.replace("runs/e", "runs/f")
    refused(rdi(line), "start: runs/a was stopped before its first evaluation and has no weights yet: go on with")


def test_own_images_are_found_again_and_what_was_left_out_is_said_once(rdi, digits, tmp_path, monkeypatch):
    root = tmp_path / "pictures"
    write_images(root, digits.calibration, "train")
    write_images(root, digits.test.sample(60), "test")
    repeated = next((root / "train").rglob("*.png"))
    shutil.copy(repeated, root / "test" / repeated.parent.name / "again.png")
    (root / "train" / "0" / "x.heic").touch()
    monkeypatch.setenv("RDI_DATA", str(tmp_path / "elsewhere"))
    result = rdi(f"train run=runs/a {OWN} data.root=pictures data.calibration_from=test")
    assert result.status == 0, result.err
    notes = (
        f"left out of {tmp_path / 'pictures'}: 1 of .heic".replace(f"{tmp_path}/", ""),
        "are, pixel by pixel, in the",
    )
    for note in notes:
        assert note in result.err
        assert note in (tmp_path / "runs" / "a" / "log.txt").read_text()
    assert read(tmp_path / "runs" / "a" / "manifest.json", Manifest).config["data"]["root"] == str(root)

    attack = "attack run={} suite=quick samples=8 threat.test_steps=1 threads=1 overwrite=true"
    result = rdi(attack.format("runs/a"))
    assert result.status == 0, result.err
    assert not any(note in result.err for note in notes)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    assert rdi(attack.format("../runs/a")).status == 0, "from another working directory"
    root.rename(tmp_path / "moved")
    refused(rdi(attack.format("../runs/a")), str(tmp_path / "elsewhere"), str(root))
    monkeypatch.setenv("RDI_DATA", str(tmp_path / "moved"))
    assert rdi(attack.format("../runs/a")).status == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("optim.batch_size=1098", "optim.batch_size=1098, but there are 1097 images to train on"),
        ("data.size=100000", "1797 images of 1x100000x100000 need 16,"),
        ("data.name=1", "data.name must be text, got 1"),
        ("data.calibration=100000", "lower data.calibration"),
        ("data.validation=100000", "lower data.calibration or data.validation"),
        ("data.test=1000000000000000000000", "data.test must be at most"),
        ("data.test=1000000000", "set data.test"),
        ("data=mnist data.root=7", "data.root must be text, got 7; quote what looks like a number"),
        ("data=mnist data.download=maybe", "data.download must be true or false"),
    ],
)
def test_settings_of_the_data_that_cannot_be_are_one_line(options, said, rdi, tmp_path):
    refused(rdi(f"train run=runs/a {TINY} {options}"), said)
    assert not (tmp_path / "runs" / "a" / "manifest.json").exists()


def test_a_data_file_without_augment_trains_without_augmentation(rdi, tmp_path):
    result = rdi(f"train run=runs/a {SMALL} ~data.augment")
    assert result.status == 0, result.err
    assert rdi(f"train run=runs/b {SMALL} data.augment=none").status == 0
    weights = [(tmp_path / "runs" / run / "checkpoint.safetensors").read_bytes() for run in "ab"]
    assert weights[0] == weights[1]


def test_garbage_in_the_files_of_mnist_is_one_line(rdi, tmp_path):
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(np.random.default_rng(0).bytes(100))
    refused(rdi(f"train run=runs/a data=mnist {TINY}"), "the files of MNIST in data are damaged or no MNIST", "put ")


def test_imported_weights_have_seen_the_training_images(rdi, tmp_path, monkeypatch):
    from rdi.runs import importing

    monkeypatch.setattr(importing, "official_state", lambda file: {})
    line = "import checkpoint=x run=runs/x threads=1"
    refused(rdi(f"{line} data.calibration_from=train"), "with data.calibration_from=test")
    assert "calibration_from" not in rdi(line).err
