"""`rdi certify` on digits, beside attacks, in tables and in health."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from helpers.commands import TINY
from helpers.mistakes import refused
from rdi import Run
from rdi.certificates import BoundedNetwork, Bounds
from rdi.certificates.store import StoredBounds
from rdi.data import Split
from rdi.errors import Interrupted, UserError
from rdi.exits import MultiExitNet
from rdi.folders import RunFolder
from rdi.health import Claim, Trial
from rdi.health.certified import certified as check
from rdi.records import CertificateRecord, Manifest, WorstRecord, read, to_dict, write
from rdi.runs.certify import Making, certified, make_bounds
from rdi.threats import ThreatModel
from rdi.thresholds import Entropy, ThresholdPolicy

TRAINED = (
    "train run=runs/d exits=custom exits.taps=[1] "
    "'exits.heads=[{_target_: rdi.exits.PoolMLP, _partial_: true, grid: 3, hidden: 64}]' "
    "backbone.dropout=0 defense=certified defense.warm_up=0.1 defense.ramp=0.5 attack=average "
    "attack.steps=1 threat.eps=0.02 threat.step_size=0.01 tracking=none threads=1 evaluations=1 "
    "calibration_samples=16 keep=last optim.epochs=null optim.iterations=100 optim.batch_size=16 optim.lr=0.003 "
    "optim.schedule=constant optim.optimizer._target_=torch.optim.Adam ~optim.optimizer.momentum "
    "optim.optimizer.weight_decay=0"
)
CERTIFY = "certify run=d samples=40 batch_size=16 threads=1"


def test_certified_images_stand_every_attack_and_everything_shows_them(rdi, tmp_path):
    assert rdi(TRAINED).status == 0
    first = rdi(CERTIFY)
    assert first.status == 0, first.err
    assert "certified accuracy" in first.out
    folder = tmp_path / "runs" / "d"
    record = read(folder / "certificates" / "entropy__test.json", CertificateRecord)
    assert "is there already" not in first.err
    again = rdi(CERTIFY)
    assert "are there already" in again.err
    assert read(folder / "certificates" / "entropy__test.json", CertificateRecord) == record
    assert rdi("attack run=d suite=quick samples=40 threads=1 tracking=none").status == 0
    judged = rdi("evaluate run=d tracking=none")
    assert judged.status == 0, judged.err
    row = next(line for line in judged.out.splitlines() if line.startswith("certified"))
    assert f"{100 * record.accuracy:.1f}" in row
    worst = read(folder / "evals" / "entropy__test-worst.json", WorstRecord)
    assert record.accuracy <= worst.accuracy
    assert record.accuracy > 0.2, "a certificate of nothing proves nothing"
    assert 0 < record.mean_macs <= record.max_macs
    front = rdi("pareto runs=[d] ratios=3 tracking=none name=front")
    assert front.status == 0, front.err
    assert "certified %" in " ".join(front.out.split())
    assert max(map(len, front.out.splitlines())) <= 80
    for point in csv.DictReader(Path("reports/front/points.csv").read_text().splitlines()):
        assert 0 < float(point["certified_accuracy"]) <= float(point["worst_accuracy"])
        assert float(point["certified_macs"]) <= max(run_costs(folder))
        assert point["certified_images"] == "40"
        assert "corruption_accuracy" not in point
    health = rdi("health run=d quick=true samples=12 threads=1")
    line = next(one for one in health.out.splitlines() if "certified image fooled" in one)
    assert "ok" in line
    run = Run("runs/d")
    claims, trials = certified(run, run.policy("entropy"))
    assert len(claims) == 1
    assert check(SimpleNamespace(history=[], policy=run.policy("entropy")), claims, trials).passed
    assert {trial.name for trial in trials} >= {"clean", "average"}
    # other eps beside it, other images and a policy of chance refused in one line each
    assert rdi("certify run=d samples=16 threat.eps=0.5 threads=1 linear=false").status == 0
    path = folder / "certificates" / "entropy__test.json"
    for change, words in (({"accuracy": 0.999}, "its bounds say"), ({"norm": "l7"}, "must be one of linf")):
        write(path, {**to_dict(record), **change})
        refused(rdi("report runs=[runs/d] ratios=3"), "runs/d/certificates/entropy__test.json", words)
    write(path, record)
    other = read(folder / "certificates" / "entropy__test@eps0.5.json", CertificateRecord)
    assert other.accuracy == 0
    assert "L-infinity eps 0.5" in " ".join(rdi("evaluate run=d tracking=none").out.split())
    refused(rdi("certify run=d samples=20 threads=1"), "replace it with overwrite=true")
    name = next(iter(rdi_thresholds(rdi, folder)))
    refused(rdi(f"certify run=d thresholds={name} threads=1"), "no certificate for RandomisedPolicy")
    assert certified(run, run.policy(name)) == ([], []), "health goes on without"


ODD = """
from torch import nn

class Sine(nn.Module):
    def forward(self, x):
        return x.sin()

class Head(nn.Sequential):
    def __init__(self, shape, classes):
        super().__init__(Sine(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], classes))
"""


def test_a_layer_without_a_bound_is_refused_by_name_before_any_work(rdi, tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_text(ODD)
    monkeypatch.syspath_prepend(tmp_path)
    options = f"{TINY} exits=custom exits.taps=[1] 'exits.heads=[{{_target_: odd.Head, _partial_: true}}]'"
    for command in ("train", "run"):
        refused(rdi(f"{command} run=runs/a defense=certified {options}"), "no bound is known for sin in Head (heads.0)")
        assert not (tmp_path / "runs" / "a" / "manifest.json").exists()
    assert rdi(f"train run=runs/b {options}").status == 0
    refused(rdi("certify run=b samples=8 threads=1 trust=[odd]"), "no bound is known for sin in Head (heads.0)")
    assert not list((tmp_path / "runs" / "b").glob("bounds/*.json"))


def run_costs(folder):
    return read(folder / "manifest.json", Manifest).costs.macs


def rdi_thresholds(rdi, folder):
    """Names of the thresholds with chance that `rdi evaluate` stores; it shows no certificate for them."""
    judged = rdi("evaluate run=d tracking=none threshold=random")
    assert judged.status == 0, judged.err
    assert not any(line.startswith("certified") for line in judged.out.splitlines())
    return [file.stem for file in (folder / "thresholds").glob("random*.json")]


def test_a_certificate_that_was_stopped_goes_on_to_the_same_bounds(tmp_path, monkeypatch):
    net = MultiExitNet([nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())], [nn.Sequential(nn.Flatten(), nn.Linear(72, 3))])
    chance = torch.Generator().manual_seed(0)
    images = torch.randint(256, (10, 1, 8, 8), generator=chance, dtype=torch.uint8)
    split = Split("test", images, torch.randint(3, (10,), generator=chance), np.arange(10))
    manifest = SimpleNamespace(checkpoint_sha256="a" * 64, config={"threat": {"eps": 0.1}})
    data = SimpleNamespace(name="digits", fingerprint="f")
    run = SimpleNamespace(
        folder=RunFolder(tmp_path / "r"),
        manifest=manifest,
        network=net.eval(),
        data=data,
        device=torch.device("cpu"),
        arguments={},
    )
    asked = iter([False, False, True])
    with pytest.raises(Interrupted, match="what is done is kept"):
        make_bounds(run, split, ThreatModel(0.1), Making(batch_size=4), lambda: next(asked))
    half = run.folder.bounds("test").with_suffix(".begun.npz")
    assert half.is_file()
    seen = []
    bounds = BoundedNetwork.bounds
    monkeypatch.setattr(
        BoundedNetwork, "bounds", lambda self, x, *a, **b: seen.append(len(x)) or bounds(self, x, *a, **b)
    )
    went_on = make_bounds(run, split, ThreatModel(0.1), Making(batch_size=4))
    assert seen == [2], "eight of ten images were done"
    assert not half.exists()
    whole = make_bounds(run, split, ThreatModel(0.1), Making(batch_size=4, overwrite=True))
    stored = StoredBounds.load(run.folder.bounds("test"))
    for side in ("low", "high", "below", "above"):
        assert torch.equal(getattr(went_on.bounds, side), getattr(whole.bounds, side))
        assert torch.equal(getattr(stored.bounds, side), getattr(whole.bounds, side))
    file = run.folder.bounds("test").with_suffix(".npz")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged"):
        StoredBounds.load(run.folder.bounds("test"))


def test_health_says_which_image_was_fooled_and_which_side_is_wrong():
    """A claim and an attack that disagree, from either side; the stored ones of a run never do."""
    logits = torch.tensor([[[0.0, 5.0], [0.0, 5.0]], [[5.0, 0.0], [5.0, 0.0]]])
    y = torch.tensor([0, 0])
    wide, narrow = (Bounds(logits - size, logits + size, logits, logits) for size in (1.0, -1.0))
    of = SimpleNamespace(history=[], policy=ThresholdPolicy(Entropy(), (0.1,)))
    trial = Trial("average", 0.1, 0.1, np.array([7, 8]), y, logits)
    claim = Claim(0.1, np.array([8, 7]), torch.tensor([True, True]), wide.rows(torch.tensor([1, 0])))
    found = check(of, [claim], [trial])
    assert not found.passed
    assert found.figure == (
        "1 of 2 certified images that were attacked; image 7 under average: the policy's certificate is wrong, all "
        "logits lie within their bounds"
    )
    tight = Claim(0.1, np.array([8, 7]), torch.tensor([True, True]), narrow.rows(torch.tensor([1, 0])))
    assert "the bounds are wrong, logits of exit 0, 1 lie outside" in check(of, [tight], [trial]).figure
    far = Trial("average", 0.1, 0.2, trial.indices, y, logits)
    assert "the attack is wrong, it moved pixels by 0.2" in check(of, [claim], [far]).figure
    assert check(of, [Claim(0.05, *vars_of(claim))], [trial]).passed, "an attack at a larger eps refutes nothing"
    assert check(of, [], [trial]).figure == "no certificate here: `rdi certify` gives one"


def vars_of(claim):
    return claim.indices, claim.right, claim.bounds
