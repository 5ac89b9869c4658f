"""Compressed networks go through every command as ordinary runs, and keep what they promise."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import rdi as api
from helpers.commands import TINY
from rdi import macs
from rdi.compression import layer_weights
from rdi.records import Manifest, Size, read

SMALL = f"{TINY} exits=none attack=average data.size=16"


@pytest.fixture(scope="module")
def dense_run(tmp_path_factory):
    """A dense network without exits, trained for two steps; read only."""
    from rdi.cli import main

    folder = tmp_path_factory.mktemp("dense") / "dense"
    torch.set_num_threads(1)
    main(["train", f"run={folder}", *SMALL.split()])
    return folder


@pytest.fixture
def dense(dense_run, tmp_path):
    """A copy of it at runs/dense."""
    shutil.copytree(dense_run, tmp_path / "runs" / "dense")
    return tmp_path / "runs" / "dense"


CASES = {
    "l0": "compression=l0 compression.ratio=0.1 compression.start=runs/dense",
    "atmc": "compression=atmc compression.ratio=0.2 compression.bits=3 compression.quant_interval=1 "
    "compression.start=runs/dense",
    "channels": "compression=channels compression.ratio=0.5 compression.start=runs/dense",
}


@pytest.mark.parametrize("case", CASES)
def test_a_compressed_run_is_attacked_and_evaluated_like_any_other(case, rdi, dense, tmp_path):
    folder = tmp_path / "runs" / "small"
    for line in (
        f"train run=runs/small {SMALL} {CASES[case]}",
        "attack run=runs/small suite=quick samples=16 threat.test_steps=1 threads=1",
        "evaluate run=runs/small tracking=none",
        "pareto runs=[runs/small] ratios=3 tracking=none",
    ):
        result = rdi(line)
        assert result.status == 0, result.err
        if line.startswith("evaluate"):
            assert f"compressed ({case}): " in result.out
    manifest, size, net = read(folder / "manifest.json", Manifest), read(folder / "size.json", Size), api.load(folder)
    assert manifest.inputs == {
        "dense/checkpoint.safetensors": read(dense / "manifest.json", Manifest).checkpoint_sha256
    }
    weights = layer_weights(net).values()
    assert size.nonzeros_effective == sum(int(weight.count_nonzero()) for weight in weights)
    assert (size.costs_dense.macs, size.costs_dense.macs_paper) == (
        read(dense / "manifest.json", Manifest).costs.macs,
        read(dense / "manifest.json", Manifest).costs.macs_paper,
    )
    counted = macs.count(net, manifest.data.shape, sparse=True)
    assert (manifest.costs.macs, manifest.costs.macs_paper) == (counted.macs, counted.macs_paper)
    record = json.loads((folder / "evals" / "entropy__test-clean.json").read_text())
    assert record["mean_macs"] == manifest.costs.macs[0]
    if case == "channels":
        assert size.nonzeros == size.nonzeros_effective < size.dense_weights
        assert manifest.costs.macs[0] <= 0.5 * size.costs_dense.macs[0]
        assert manifest.widths
        assert manifest.parameters == sum(parameter.numel() for parameter in net.parameters())
    else:
        assert size.nonzeros <= size.budget == int((0.1 if case == "l0" else 0.2) * size.dense_weights)
        assert manifest.costs.macs == size.costs_dense.macs, "unstructured zeros save nothing on dense hardware"
        assert manifest.costs.macs_paper[0] < size.costs_dense.macs_paper[0]
    if case == "atmc":
        stored = load_file(folder / "factors.safetensors")
        assert sum(int(part.count_nonzero()) for part in stored.values()) == size.nonzeros
        assert all(len(part[part != 0].unique()) <= 8 for part in stored.values())
        for name, weight in layer_weights(net).items():
            a, b, c = (stored[f"{name}.{letter}"] for letter in "ABC")
            effective = b @ a + (a if len(a) == len(weight) else b) + c
            torch.testing.assert_close(weight.detach().flatten(1), effective)


def test_layers_that_the_budget_leaves_nothing_are_named(rdi):
    result = rdi(f"train run=runs/small {SMALL} compression=l0 compression.ratio=0.0005")
    assert result.status == 0, result.err
    empty = [name for name, weight in layer_weights(api.load("runs/small")).items() if not weight.count_nonzero()]
    assert empty
    assert f"no weight is left in {', '.join(empty)}, whose output" in result.err


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_compression_goes_on_without_the_run_it_started_from(case, rdi, dense, monkeypatch):
    from rdi import signals

    class Impatient(signals.StopFlag):
        def __call__(self):
            self.asked = getattr(self, "asked", 0) + 1
            return self.asked > 2

    line = f"{SMALL} {CASES[case]} optim.iterations=5 evaluations=2"
    assert rdi(f"train run=whole {line}").status == 0
    with monkeypatch.context() as patch:
        patch.setattr(signals, "StopFlag", Impatient)
        assert rdi(f"train run=cut {line}").status == 130
    shutil.rmtree(dense)
    result = rdi("train run=cut tracking=none threads=1")
    assert result.status == 0, result.err
    for name in ("checkpoint", "factors") if case == "atmc" else ("checkpoint",):
        mine, theirs = (load_file(f"{run}/{name}.safetensors") for run in ("cut", "whole"))
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
