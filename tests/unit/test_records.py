"""Records survive the trip through JSON, strictly; files are whole or absent."""

import json
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest

from helpers.examples import (
    EVALUATION,
    EXAMPLES,
    MANIFEST,
)
from rdi.errors import UserError
from rdi.records import (
    Costs,
    EvalRecord,
    Thresholds,
    WorstRecord,
    read,
    to_dict,
    write,
)
from rdi.storage import read_json

KINDS = [type(record).__name__ for record in EXAMPLES]


def test_the_examples_cover_every_record():
    from rdi import records

    declared = {name for name, value in vars(records).items() if hasattr(value, "__pydantic_fields__")}
    assert declared == set(KINDS)


@pytest.mark.parametrize("record", EXAMPLES, ids=KINDS)
def test_every_record_survives_json(record, tmp_path):
    path = tmp_path / "record.json"
    write(path, record)
    assert read(path, type(record)) == record
    assert read_json(path) == json.loads(json.dumps(to_dict(record)))
    assert list(read_json(path)) == [field.name for field in fields(record)]


@pytest.mark.parametrize("record", EXAMPLES, ids=KINDS)
def test_an_unknown_key_is_refused_by_name(record, tmp_path):
    path = tmp_path / "record.json"
    write(path, {**to_dict(record), "surprise": 1})
    with pytest.raises(UserError, match="surprise"):
        read(path, type(record))


# what records of the first versions lack: these must stay readable
LATER = {
    *(("Thresholds", name) for name in ("policy", "facts", "expected", "attacked_sha256")),
    *(("Manifest", name) for name in ("widths", "splits_sha256")),
    *((name, "sha256") for name in ("BankManifest", "BoundsManifest")),
    *((name, "norm") for name in ("WorstRecord", "BoundsManifest", "CertificateRecord")),
    ("BankManifest", "length"),
    *(("EvalRecord", name) for name in ("draws", "efficacy")),
    *(("WorstRecord", name) for name in ("draws", "transfer", "fewer", "common_samples", "common_accuracy")),
    ("Size", "factors"),
}


@pytest.mark.parametrize("record", EXAMPLES, ids=KINDS)
def test_what_came_later_may_be_missing(record, tmp_path):
    path = tmp_path / "record.json"
    kind = type(record).__name__
    write(path, {key: value for key, value in to_dict(record).items() if (kind, key) not in LATER})
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(record)}
    assert read(path, type(record)) == replace(record, **{name: defaults[name] for k, name in LATER if k == kind})


def test_the_records_under_results_are_readable():
    files = {"thresholds": Thresholds, "evals": EvalRecord}
    root = Path(__file__).resolve().parents[2] / "results"
    found = [path for folder in files for path in root.glob(f"*/{folder}/*.json")]
    assert len(found) > 10
    for path in found:
        kind = WorstRecord if path.stem.partition("@")[0].endswith("-worst") else files[path.parent.name]
        assert isinstance(read(path, kind), kind)


@pytest.mark.parametrize("record", EXAMPLES, ids=KINDS)
def test_every_missing_key_is_refused_by_name(record, tmp_path):
    path = tmp_path / "record.json"
    for field in fields(record):
        if (type(record).__name__, field.name) in LATER:
            continue
        write(path, {key: value for key, value in to_dict(record).items() if key != field.name})
        with pytest.raises(UserError, match=field.name):
            read(path, type(record))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"accuracy": "0.75"}, "accuracy"),
        ({"samples": 4.5}, "samples"),
        ({"samples": "4"}, "samples"),
        ({"samples": True}, "samples"),
        ({"values": 0.5}, "values"),
        ({"values": [0.5, "x"]}, r"values\.1"),
        ({"run": None}, "run"),
        ({"settings": {"eps": [1]}}, "settings"),
    ],
)
def test_wrong_types_are_refused_with_their_place(change, where, tmp_path):
    path = tmp_path / "record.json"
    write(path, {**to_dict(EVALUATION), **change})
    with pytest.raises(UserError, match=rf"is damaged \({where}.*not a valid EvalRecord"):
        read(path, EvalRecord)


def test_records_check_their_types_when_they_are_made():
    with pytest.raises(ValueError, match="accuracy"):
        replace(EVALUATION, accuracy="0.75")
    with pytest.raises(ValueError, match="mean_macs"):
        replace(EVALUATION, mean_macs=float("nan"))
    with pytest.raises(ValueError, match="EvalRecord"):
        EvalRecord()


def test_records_are_frozen():
    with pytest.raises(AttributeError):
        EVALUATION.accuracy = 1.0


@pytest.mark.parametrize("bad", ["NaN", "Infinity", "-Infinity"])
def test_nan_and_infinity_are_refused_on_the_way_in(bad, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(to_dict(EVALUATION)).replace('"accuracy": 0.75', f'"accuracy": {bad}'))
    with pytest.raises(UserError, match="accuracy"):
        read(path, EvalRecord)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_on_the_way_out_and_leave_no_file(bad, tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write(tmp_path / "record.json", {"value": bad})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_file_that_is_no_record_is_refused(text, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"record\.json is damaged[^:]*( \(file: .*\))?, not "):
        read(path, Costs)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json does not exist"):
        read(tmp_path / "nowhere.json", Costs)


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("a.json", "b.json"):
        write(tmp_path / name, MANIFEST)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
