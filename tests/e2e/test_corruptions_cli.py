"""Common corruptions by the commands: made, judged, shown everywhere, and no part of a worst case."""

import csv
import json
import shutil

import numpy as np
import pytest

from helpers.mistakes import refused
from rdi.banks import LogitsBank
from rdi.data import Digits
from rdi.evaluating import judge
from rdi.folders import RunFolder
from rdi.records import CorruptionRecord, WorstRecord, read, to_dict, write
from rdi.thresholds import Entropy, ThresholdPolicy

ATTACK = "attack run=runs/demo threads=1 samples=16 tracking=none corruption=files"
EVALUATE = "evaluate run=runs/demo tracking=none"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Digits in the layout of CIFAR-10-C, upside down at severity 1 and the same at all others."""
    test = Digits(name="digits", calibration=300, test=400).load().test
    order = np.argsort(test.indices)
    pixels = test.images.numpy()[order].transpose(0, 2, 3, 1)
    folder = tmp_path / "data" / "CIFAR-10-C"
    folder.mkdir(parents=True)
    for kind in ("fog", "snow"):
        np.save(folder / f"{kind}.npy", np.concatenate([pixels[:, ::-1], *[pixels] * 4]))
    np.save(folder / "labels.npy", np.tile(test.labels.numpy()[order], 5))
    monkeypatch.setenv("RDI_DATA", str(tmp_path / "data"))
    return folder


def test_corruptions_are_judged_and_shown_and_count_in_no_worst_case(rdi, demo, files, tmp_path):
    assert rdi(EVALUATE).status == 0
    worst = demo / "evals" / "entropy__test-worst.json"
    before = read(worst, WorstRecord)
    made = rdi(f"{ATTACK} corruption.kinds=[fog,snow] corruption.severities=[1,2]")
    assert made.status == 0, made.err
    assert set(RunFolder(demo).corrupted("test")) == {"fog_1", "fog_2", "snow_1", "snow_2"}
    said = rdi(EVALUATE)
    assert said.status == 0, said.err
    assert read(worst, WorstRecord) == before
    record = read(demo / "corruptions" / "entropy__test.json", CorruptionRecord)
    assert (record.kinds, record.severities, record.samples) == (("snow", "fog"), (1, 2), 16)
    clean = json.loads((demo / "banks" / "test-clean" / "manifest.json").read_text())
    assert clean["samples"] == 400
    (upside, same), again = record.accuracies
    assert again == (upside, same)
    assert record.accuracy == pytest.approx((upside + same) / 2)
    words = " ".join(said.out.split())
    assert "mean corruption accuracy" in words
    assert f"snow {100 * record.accuracy:.1f} {100 * upside:.1f} {100 * same:.1f}" in words
    assert f"{100 * record.accuracy:.1f}" in rdi("list runs=[runs/demo]").out
    assert rdi("report runs=[runs/demo] ratios=3").status == 0
    page = (tmp_path / "reports" / "demo" / "index.html").read_text()
    assert "Mean corruption accuracy" in page
    shutil.copytree(demo, tmp_path / "runs" / "other")
    shutil.rmtree(tmp_path / "runs" / "other" / "corrupted" / "test-fog_1")
    pareto = "pareto 'runs=[demo,other]' ratios=3 tracking=none name=both"
    apart = rdi(pareto)
    assert "means over other corruptions do not compare" in apart.err, "fog is not there at every severity"
    assert "corrupted %" not in apart.out
    assert apart.err.count("left out, as not made at every severity: fog") == 1
    shutil.rmtree(tmp_path / "runs" / "other" / "corrupted")
    assert "corrupted: mean corruption accuracy" in rdi(pareto).out
    points = list(csv.DictReader((tmp_path / "reports" / "both" / "points.csv").read_text().splitlines()))
    assert {point["run"] for point in points if point["corruption_accuracy"]} == {"demo"}
    banks = [LogitsBank.load(demo / "corrupted" / f"test-{name}") for name in ("fog_1", "fog_2", "snow_1", "snow_2")]
    policy = ThresholdPolicy(Entropy(), [float(value) for value in points[1]["thresholds"].split()])
    right = [float(judge(bank.logits, bank.labels, policy).correct.double().mean()) for bank in banks]
    assert float(points[1]["corruption_accuracy"]) == pytest.approx(sum(right) / 4)
    assert "snow" in page
    path = demo / "corruptions" / "entropy__test.json"
    for change, words in (({"accuracy": 0.999}, "its banks say"), ({"kinds": []}, "no table of 0 kinds")):
        write(path, {**to_dict(record), **change})
        refused(rdi("report runs=[runs/demo] ratios=3"), str(path), words)


def test_what_is_there_stays_and_other_images_do_not_mix(rdi, demo, files):
    fog = f"{ATTACK} corruption.kinds=[fog] corruption.severities=[1]"
    assert rdi(fog).status == 0
    bank = demo / "corrupted" / "test-fog_1" / "bank.npz"
    made = bank.stat().st_mtime_ns
    assert "fog_1 on test is there already" in rdi(fog).err
    assert bank.stat().st_mtime_ns == made
    refused(rdi(f"{fog} samples=8"), "is of 16 images", "overwrite=true")
    assert rdi(f"{fog} samples=8 overwrite=true").status == 0
    assert len(np.load(bank)["labels"]) == 8
    refused(rdi(f"{ATTACK} attack=average"), "give one of them")
    refused(rdi(f"{fog} ranks=2"), "ranks changes nothing beside corruption=...")
    shutil.rmtree(files)
    refused(rdi(fog), "there are no corrupted images at")


@pytest.mark.parametrize("file", ["bank.npz", "manifest.json"])
def test_a_damaged_bank_is_named_and_overwrite_makes_it_again(file, rdi, demo, files):
    fog = f"{ATTACK} corruption.kinds=[fog] corruption.severities=[1]"
    assert rdi(fog).status == 0
    bank = demo / "corrupted" / "test-fog_1"
    made = (bank / "bank.npz").read_bytes()
    if file == "bank.npz":
        (bank / file).write_bytes(made[:-30])
    else:
        (bank / file).unlink()
    refused(rdi(fog), f"{bank}", "attack` again" if file == "bank.npz" else "delete it and attack again")
    assert rdi(f"{fog} overwrite=true").status == 0
    assert (bank / "bank.npz").read_bytes() == made
    assert "is there already" in rdi(fog).err


def test_the_digits_are_too_small_to_be_corrupted_by_the_package(rdi, demo):
    refused(rdi("attack run=runs/demo corruption=common"), "corruptions are defined for images of 32 pixels or more")
