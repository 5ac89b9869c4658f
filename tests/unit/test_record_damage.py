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
    CertificateRecord,
    CorruptionRecord,
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
    # rows of a benchmark are alike and many: all keys at the top, and a sample of what lies below
    top, below = [at for at in places(tree) if len(at) == 1], [at for at in places(tree) if len(at) > 1]
    deleted = [*top, *chance.sample(below, min(len(below), 400))]
    cases = [(at, other, False) for at in places(tree) for other in OTHERS]
    cases = [(at, None, True) for at in deleted] + chance.sample(cases, min(len(cases), 400))
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


RANGES = {
    EvalRecord: {"accuracy": 1.5, "exit_share": [2.0], "mean_macs": -1.0, "saving": 1.5, "draws": 0, "samples": 0},
    WorstRecord: {"norm": "l7", "eps": -1.0, "common_accuracy": -0.5},
    BankManifest: {"linf": -1.0, "seconds": -1.0, "settings": {"eps": "x"}, "batch_size": 0},
    CertificateRecord: {"norm": "x", "exit_may": [-0.5], "max_macs": -1, "accuracy_high": 1e300},
    CorruptionRecord: {"kinds": [], "accuracies": [[7.0]], "mean_macs_of": [], "severities": [0]},
    HealthRecord: {"samples": -1},
    Thresholds: {"samples": -1},
}


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in RANGES.items() for key in keys])
def test_numbers_out_of_range(kind, key, tmp_path):
    tree = real(KINDS.get(kind), kind)
    (tmp_path / "record.json").write_text(json.dumps({**tree, key: RANGES[kind][key]}))
    with pytest.raises(UserError, match=r"record\.json is damaged") as error:
        records.read(tmp_path / "record.json", kind)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("norm", [[], {}, "l7", None])
def test_a_norm_of_another_type(norm, tmp_path):
    tree = real("manifest.json", Manifest)
    tree["config"]["threat"]["norm"] = norm
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"config\.threat\.norm is "):
        records.read(tmp_path / "manifest.json", Manifest)


@pytest.mark.parametrize("key", ["macs", "macs_paper"])
def test_costs_one_short(key, tmp_path):
    tree = real("manifest.json", Manifest)
    tree["costs"][key].pop()
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=f"costs.{key} lists"):
        records.read(tmp_path / "manifest.json", Manifest)
