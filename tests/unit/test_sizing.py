"""Absurd sizes, typed or out of a manifest, are refused in one line before anything is allocated."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from rdi import sizing
from rdi.backbones import mobilenetv2, resnet, smallcnn
from rdi.cli import main
from rdi.compression import chains
from rdi.errors import UserError
from rdi.exits import PaperExits
from rdi.records import Manifest, read
from rdi.runs import networks
from rdi.runs.identity import identity
from rdi.thresholds import Entropy, RandomisedPolicy

DEMO = Path(__file__).parents[2] / "results" / "demo"
HUGE = 10**9
SMALLCNN = {"_target_": "rdi.backbones.smallcnn"}
PAPER = {"_target_": "rdi.exits.PaperExits"}


def custom(head, **options):
    node = {"_target_": f"rdi.exits.{head}", "_partial_": True, **options}
    return {"_target_": "rdi.exits.CustomExits", "taps": [1], "heads": [node]}


def lean(head, **options):
    node = {"_target_": f"rdi.exits.{head}", "_partial_": True, **options}
    return {"_target_": "rdi.lean_exits.LeanExits", "depths": [0.5], "heads": [node]}


ABSURD = {
    "depth": ({"backbone": {"_target_": "rdi.backbones.resnet", "depth": 6 * HUGE + 2}}, "backbone.depth must be in"),
    "width": ({"backbone": {"_target_": "rdi.backbones.mobilenetv2", "width": 1e9}}, "backbone.width must be in"),
    "hidden": ({"exits": custom("PoolMLP", hidden=HUGE)}, "does not fit the memory"),
    "grid": ({"exits": custom("PoolMLP", grid=HUGE)}, "does not fit the memory"),
    "channels": ({"exits": custom("ConvPool", channels=HUGE)}, "does not fit the memory"),
    "layers": ({"exits": custom("ConvPool", layers=HUGE)}, "layers must be in"),
    "of a lean head": ({"exits": lean("PoolMLP", hidden=HUGE)}, "does not fit the memory"),
    "beyond 64 bits": ({"exits": custom("PoolMLP", hidden=2**63)}, "does not fit the memory"),
}


def refused(capsys, *words):
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as end:
        main([*words])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()[-1]


@pytest.mark.parametrize("what", ABSURD)
def test_a_network_that_no_memory_holds_is_refused_unmade(what):
    change, message = ABSURD[what]
    with pytest.raises(UserError, match=message):
        networks.model({"backbone": SMALLCNN, "exits": PAPER} | change, (1, 28, 28), 10, 0)


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((1, HUGE, HUGE), 10, "images of 1x1000000000x1000000000 do not fit the memory"),
        ((HUGE, 28, 28), 10, "do not fit the memory"),
        ((1, 28, 28), 10**12, "this network does not fit the memory: with a layer of 1000000000000x200 numbers"),
    ],
)
def test_images_and_classes_out_of_a_manifest_are_bounded_too(shape, classes, message):
    with pytest.raises(UserError, match=message):
        networks.model({"backbone": SMALLCNN, "exits": PAPER}, shape, classes, 0)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["backbone=resnet38", "backbone.depth=6000000002"], "backbone.depth must be in [14, 2000]"),
        (["backbone=mobilenetv2", "backbone.width=1e9"], "backbone.width must be in (0, 4]"),
        (
            ["exits=custom", "exits.heads=[{_target_:rdi.exits.PoolMLP,_partial_:true,hidden:1000000000}]"],
            "does not fit the memory",
        ),
        (["shape=[3,1000000,1000000]"], "images of 3x1000000x1000000 do not fit the memory"),
        (["classes=1000000000000"], "does not fit the memory"),
    ],
)
def test_typed_sizes_end_in_one_line(typed, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, "bench", "rows=[thresholds]", *typed)


@pytest.mark.parametrize("what", ["depth", "hidden"])
def test_sizes_of_a_manifest_end_in_one_line(what, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(DEMO, run)
    (run / "done").touch()
    content = json.loads((run / "manifest.json").read_text())
    content.pop("checksum", None)
    change, message = ABSURD[what]
    content["config"] |= change
    content["identity"] = identity(content["config"])
    (run / "manifest.json").write_text(json.dumps(content))
    assert message in refused(capsys, "attack", f"run={run}", "attack=average", "tracking=none")


@pytest.mark.parametrize("left", [0, -1, 65, 2**62])
def test_widths_that_the_network_has_not_are_refused(left):
    net = PaperExits()(resnet((3, 32, 32), 10, depth=14))
    first = chains(net)[0].producer
    with pytest.raises(UserError, match=f"widths.{first} of the manifest is {left}, and this network has"):
        networks.narrow(net, {first: left})
    with pytest.raises(UserError, match="has no channels to narrow there"):
        networks.narrow(net, {"stages.9.nothing": 4})


def test_draws_are_bounded():
    with pytest.raises(UserError, match=r"threshold\.draws must be in \[1, 10000\]"):
        RandomisedPolicy(Entropy(), [0.1], [0.2], draws=HUGE)


def test_the_published_networks_are_counted_and_pass(monkeypatch):
    for make, shape in ((smallcnn, (1, 28, 28)), (resnet, (3, 32, 32)), (mobilenetv2, (3, 32, 32))):
        with sizing._Counting(sizing.LARGEST) as counted:
            net = PaperExits()(make(shape, 10))
        weights = sum(parameter.numel() for parameter in net.parameters())
        assert sizing.BYTES * weights <= counted.total < 8 * sizing.BYTES * weights + 10**6
    with pytest.raises(UserError, match="does not fit"), sizing._Counting(counted.total - 1):
        PaperExits()(mobilenetv2((3, 32, 32), 10))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(10, 10),
        lambda: torch.zeros((10, 10)),
        lambda: torch.ones(size=(10, 10)),
        lambda: torch.full((10, 10), 1.0),
        lambda: nn.Linear(10, 10, bias=False),
        lambda: nn.Conv2d(10, 10, 1, bias=False),
    ],
)
def test_whatever_makes_numbers_is_counted(make):
    with sizing._Counting(400) as counted:
        make()
    assert counted.total == 400
    with pytest.raises(UserError), sizing._Counting(399):
        make()


def test_a_run_of_today_is_read_as_before():
    manifest = read(DEMO / "manifest.json", Manifest)
    net = networks.model(manifest.config, manifest.data.shape, len(manifest.data.class_names), manifest.seed)
    assert sum(parameter.numel() for parameter in net.parameters()) == manifest.parameters
