"""Records that are well-formed JSON and lack inner keys, or hold others: one line that names the file and the key."""

import json
import random
from pathlib import Path

import pytest

from helpers.examples import EXAMPLES
from rdi import records
from rdi.errors import UserError
from rdi.records import (
    BankManifest,
    BenchRecord,
    EvalRecord,
    FrontRecord,
    GalleryRecord,
    HealthRecord,
    Manifest,
    Size,
    Thresholds,
    WorstRecord,
    files,
)

RESULTS = Path(__file__).resolve().parents[2] / "results"
OTHERS = (None, [], {}, "x", -1, True, 0.5, [[]], {"a": 1})


def real(pattern, kind):
    """A committed record of a kind, as a tree without its checksum."""
    if pattern is None:
        return records.to_dict(next(record for record in EXAMPLES if isinstance(record, kind)))
    for path in sorted(RESULTS.rglob(pattern)):
        tree = json.loads(path.read_text())
        tree.pop("checksum", None)
        try:
            files.adapter(kind).validate_json(json.dumps(tree), strict=True)
        except ValueError:
            continue
        return tree
    raise AssertionError(f"no {kind.__name__} below {RESULTS}")


KINDS = {
    Manifest: "manifest.json",
    BankManifest: "banks/*/manifest.json",
    Thresholds: "thresholds/*.json",
    EvalRecord: "evals/*-clean.json",
    WorstRecord: "evals/*-worst.json",
    Size: "size.json",
    BenchRecord: "bench/*.json",
    FrontRecord: "summary.json",
    HealthRecord: "health/*.json",
    GalleryRecord: None,  # images of a run are not committed: the example of the records' own tests
}


def places(tree, at=()):
    """Where there is something in a tree, as paths of keys."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*at, key)
        yield from places(value, (*at, key))


def changed(tree, at, other, delete=False):
    """A copy of the tree with another value at a place, or none."""
    tree = json.loads(json.dumps(tree))
    node = tree
    for key in at[:-1]:
        node = node[key]
    if delete:
        del node[at[-1]]
    else:
        node[at[-1]] = other
    return tree


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_key_deleted_or_of_another_type(kind, tmp_path):
    tree = real(KINDS[kind], kind)
    path = tmp_path / "record.json"
    chance = random.Random(kind.__name__)
    cases = [(at, other, False) for at in places(tree) for other in OTHERS]
    cases = [(at, None, True) for at in places(tree)] + chance.sample(cases, min(len(cases), 400))
    refusals = 0
    for at, other, delete in cases:
        path.write_text(json.dumps(changed(tree, at, other, delete)))
        try:
            records.read(path, kind)
        except UserError as error:
            refusals += 1
            text = str(error)
            assert text.startswith(str(path)), (at, other, text)
            assert "\n" not in text, (at, other, text)
            assert any(str(key) in text for key in at), (at, other, text)
    assert refusals > len(cases) / 8
    assert len({at[0] for at, _, _ in cases}) == len(tree)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": {}}, "config.backbone is missing"),
        ({"choices": {}}, "choices.backbone is missing"),
        ({"exits": 9}, "costs.macs lists 3 numbers, and the network has 9 exits"),
        ({"exits": 0}, "exits is 0"),
    ],
)
def test_a_manifest_whose_parts_do_not_agree(change, words, tmp_path):
    tree = real("manifest.json", Manifest)
    if "exits" in change:
        assert tree["exits"] == len(tree["costs"]["macs"])
        words = words.replace("3 numbers", f"{tree['exits']} numbers")
    (tmp_path / "manifest.json").write_text(json.dumps({**tree, **change}))
    with pytest.raises(UserError, match=words):
        records.read(tmp_path / "manifest.json", Manifest)


@pytest.mark.parametrize("key", ["macs", "macs_paper"])
def test_costs_one_short(key, tmp_path):
    tree = real("manifest.json", Manifest)
    tree["costs"][key].pop()
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=f"costs.{key} lists"):
        records.read(tmp_path / "manifest.json", Manifest)
