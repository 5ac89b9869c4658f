"""A gated network goes through every command: costs are each image's own; what gates cannot do is said in a line."""

import json

import pytest
import torch

import rdi as api
from helpers.commands import TINY
from rdi.banks import LogitsBank
from rdi.records import HealthRecord, Manifest, read

NET = "backbone=resnet16 backbone.blocks=[1,2,2] backbone.channels=[8,12,16]"
TRAIN = f"train data=digits data.size=16 optim=digits {TINY} attack=average gates=layers_channels"
CLOSING = "gates.share=0.5 gates.weight=50 gates.alone=0 optim.lr=0.1"
"""Options by which some gates are closed after a few steps."""
ON = "run=runs/gated samples=16 threat.test_steps=2 threads=1"


def test_a_gated_run_is_attacked_evaluated_checked_and_loaded(rdi, tmp_path):
    folder = tmp_path / "runs" / "gated"
    for line in (
        f"{TRAIN.replace('iterations=2', 'iterations=12')} {NET} exits=lean {CLOSING} run=runs/gated",
        f"attack {ON} suite=quick",
        f"attack {ON} attack=slowdown",
        f"attack {ON} attack=joint",
        "evaluate run=runs/gated tracking=none",
        f"health {ON} quick=true queries=4 draws=8",
        "pareto runs=[runs/gated] ratios=3 tracking=none",
        "report runs=[runs/gated] name=gated",
    ):
        result = rdi(line)
        assert result.status == 0, result.err
        assert ("as if all gates were open" in result.out) == line.startswith("evaluate")
    manifest = read(folder / "manifest.json", Manifest)
    assert manifest.choices["gates"] == "layers_channels"
    record = json.loads((folder / "evals" / "entropy__test-clean.json").read_text())
    bank = LogitsBank.load(folder / "banks" / "test-clean")
    net, policy = api.load(folder, device="cpu"), api.load_thresholds(folder)
    assert bank.skipped[:, -1].max() > 0
    exits = policy.choose(bank.logits)
    spent = torch.tensor(manifest.costs.macs)[exits] - bank.skipped.gather(1, exits[:, None])[:, 0]
    assert record["mean_macs"] == pytest.approx(float(spent.double().mean()))
    test = api.data.Digits(name="digits", calibration=300, test=400, size=16).load().test
    found = api.AdaptivePredictor(net, policy)(test.images[:50] / 255)
    assert found.macs.tolist() == spent[:50].tolist()
    assert {check.name for check in read(folder / "health" / "entropy.json", HealthRecord).checks} >= {
        "gates, costs",
        "gates, gradients",
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (f"{NET} gates.share=0.05", "gates.share=0.05 cannot be reached"),
        ("backbone=smallcnn", "gates=... are for ResNets"),
        (f"{NET} exits=none compression=l0", "gates and compression do not go together"),
    ],
)
def test_what_cannot_be_gated_is_refused_before_training(options, said, rdi, tmp_path):
    result = rdi(f"{TRAIN} run=runs/x {options}")
    assert result.status == 2
    assert len(result.errors) == 1
    assert said in result.errors[0]
    assert not (tmp_path / "runs" / "x").exists()
