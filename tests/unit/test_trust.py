"""A run folder is data: what it may name, what it may make us read and write, and what of it may reach a terminal."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rdi import config
from rdi.cli import _edge
from rdi.records import Manifest, read

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted(
    path for path in (ROOT / "results").rglob("manifest.json") if "config" in json.loads(path.read_text())
)


def moved_engine(tree):
    """The same config, with one class spelled by another place than its canonical one."""
    return json.loads(json.dumps(tree).replace("rdi.attacks.engine.Engine", "rdi.fast_copy.FastCopy"))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parent.name)
def test_a_moved_class_keeps_the_identity_of_the_committed_runs(path, monkeypatch):
    manifest = read(path, Manifest)
    assert _edge.identity(manifest.config) == manifest.identity
    monkeypatch.setitem(config.HOMES, "rdi.attacks.engine.Engine", "rdi.fast_copy.FastCopy")
    again = moved_engine(manifest.config)
    assert (again == manifest.config) == ("rdi.attacks.engine.Engine" not in path.read_text())
    assert _edge.identity(again) == manifest.identity


def test_a_class_is_known_by_one_name_wherever_in_its_package_it_lies():
    assert config.canonical("rdi.attacks.max_average.MaxAverage") == "rdi.attacks.MaxAverage"
    assert config.canonical("rdi.attacks.families.new.MaxAverage") == "rdi.attacks.MaxAverage"
    assert config.canonical("torch.optim.sgd.SGD") == "torch.optim.sgd.SGD", "others keep theirs"
    assert config.canonical("my_attacks.MaxAverage") == "my_attacks.MaxAverage"


def test_a_moved_class_is_built_from_its_old_name_and_described_by_it(monkeypatch):
    class FastCopy:
        def __init__(self, fold):
            self.fold = fold

    place = ModuleType("rdi_moved")
    place.FastCopy, FastCopy.__module__, FastCopy.__qualname__ = FastCopy, "rdi_moved", "FastCopy"
    monkeypatch.setitem(sys.modules, "rdi_moved", place)
    monkeypatch.setitem(config.HOMES, "rdi.attacks.engine.Engine", "rdi_moved.FastCopy")
    node = {"_target_": "rdi.attacks.engine.Engine", "fold": True}
    built = config.build(node, "engine")
    assert type(built) is FastCopy
    assert config.describe(built) == node
