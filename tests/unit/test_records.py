"""Records survive the trip through JSON, strictly; files are whole or absent."""

import json
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

import pytest

from rdi.errors import UserError
from rdi.records import (
    BankManifest,
    BenchRecord,
    BenchRow,
    Check,
    Costs,
    DataInfo,
    Environment,
    EvalRecord,
    Expected,
    FrontRecord,
    GalleryRecord,
    HealthRecord,
    Manifest,
    Selection,
    Size,
    Thresholds,
    WorstRecord,
    read,
    to_dict,
    write,
)
from rdi.storage import read_json

ENVIRONMENT = Environment(versions={"python": "3.11.7"}, device="cpu: x86", threads=2, commit=None, dirty=None)
COSTS = Costs(macs=(10, 25), macs_paper=(9, 19), macs_plain=20, macs_plain_paper=19)
DATA = DataInfo(
    name="digits",
    shape=(1, 28, 28),
    class_names=("0", "1"),
    samples={"train": 3, "calibration": 2, "test": 1},
    fingerprint="ab",
)
SELECTION = Selection(kept="best", best_step=5, best_score=0.5, last_step=10, last_score=0.25, samples=100)
ROW = BenchRow(
    group="attacks",
    name="max_avg, bf16",
    against="textbook loop",
    batch_size=64,
    ratio=5.0,
    ratio_low=None,
    ratio_high=None,
    target=4.5,
    values={"seconds": 2.0},
)
CHECK = Check(name="more steps", passed=True, figure="50 %, 40 %", meaning="a longer attack leaves more right")
SETTINGS = {"attack": "Average", "eps": 0.1, "steps": 3, "random_start": True, "rule": None}
MANIFEST = Manifest(
    command="import",
    config={
        "seed": 0,
        "data": {"_target_": "rdi.data.Digits", "name": "digits"},
        "backbone": {"_target_": "rdi.backbones.smallcnn"},
        "exits": {"_target_": "rdi.exits.NoExits"},
        "threshold": {"_target_": "rdi.thresholds.ShareRule"},
        "threat": {"eps": 0.1, "step_size": 0.025, "steps": 5, "test_steps": 20},
        "list": [1, 2.5, None],
    },
    choices={"data": "digits", "backbone": "smallcnn", "exits": "none", "threshold": "entropy"},
    identity="0123",
    seed=0,
    environment=ENVIRONMENT,
    data=DATA,
    exits=2,
    parameters=100,
    costs=COSTS,
    inputs={},
    started="2026-01-01T00:00:00+00:00",
    ended=None,
    seconds=None,
    selection=None,
    checkpoint_sha256=None,
)
BANK = BankManifest(
    run="demo",
    split="test",
    attack="average",
    settings=SETTINGS,
    engine={"fold": True, "channels_last": True, "precision": "float32"},
    samples=4,
    batch_size=2,
    seed=0,
    linf=0.1,
    data="digits",
    fingerprint="ab",
    checkpoint_sha256="cd",
    environment=ENVIRONMENT,
    seconds=1.5,
)
EVALUATION = EvalRecord(
    run="demo",
    data="digits",
    split="test",
    attack="average",
    settings=SETTINGS,
    threshold="entropy",
    values=(0.5,),
    samples=4,
    seed=0,
    accuracy=0.75,
    accuracy_low=0.3,
    accuracy_high=0.95,
    exit_accuracy=(0.5, 0.75),
    exit_share=(0.5, 0.5),
    mean_macs=17.5,
    mean_macs_paper=14.0,
    saving=0.125,
    saving_paper=-0.1,
    bank_sha256="ef",
    checkpoint_sha256="cd",
    efficacy=0.5,
)
EXPECTED = Expected(
    accuracy=0.5,
    accuracy_low=0.25,
    accuracy_high=0.75,
    mean_macs=15.0,
    mean_macs_low=12.5,
    mean_macs_high=17.5,
    samples=10,
    images=4,
    folds=5,
)
EXAMPLES = [
    COSTS,
    DATA,
    ENVIRONMENT,
    replace(ENVIRONMENT, commit="abc", dirty=True),
    SELECTION,
    MANIFEST,
    replace(MANIFEST, ended="2026-01-01T00:01:00+00:00", seconds=60.0, selection=SELECTION, checkpoint_sha256="cd"),
    replace(MANIFEST, widths={"stages.0.1.conv1": 7}),
    Size(
        dense_weights=100,
        weights=100,
        nonzeros=20,
        nonzeros_effective=60,
        budget=20,
        bits_per_weight=8,
        bits_dense=3200,
        bits_published=192,
        bits=292,
        bits_outside=320,
        ratio=0.2,
        size_published=0.06,
        size=0.09125,
        costs_dense=COSTS,
    ),
    BANK,
    Thresholds(
        name="entropy",
        rule={"_target_": "rdi.thresholds.ShareRule", "shares": None},
        values=(0.25,),
        split="calibration",
        samples=2,
        bank_sha256="ef",
        checkpoint_sha256="cd",
    ),
    EXPECTED,
    Thresholds(
        name="budget-012345",
        rule={"_target_": "rdi.thresholds.BudgetRule", "share": 0.7},
        values=(0.25,),
        split="calibration",
        samples=2,
        bank_sha256="ef",
        checkpoint_sha256="cd",
        policy={"_target_": "rdi.thresholds.PatiencePolicy", "exits": 4, "patience": 1},
        facts={"value": 0.7, "data": "mixed"},
        expected={"clean": EXPECTED},
        attacked_sha256={"average": "01"},
    ),
    EVALUATION,
    WorstRecord(
        run="demo",
        data="digits",
        split="test",
        eps=0.1,
        attacks=("average", "max_avg"),
        others=(),
        threshold="entropy",
        samples=4,
        seed=0,
        accuracy=0.5,
        accuracy_low=0.15,
        accuracy_high=0.85,
        checkpoint_sha256="cd",
    ),
    ROW,
    BenchRecord(
        environment=ENVIRONMENT,
        started="2026-01-01T00:00:00+00:00",
        seconds=3.5,
        config={"steps": 20},
        choices={"backbone": "resnet38"},
        shape=(3, 32, 32),
        exits=7,
        parameters=100,
        repeats=3,
        rows=(ROW,),
    ),
    FrontRecord(
        runs=("runs/demo",),
        objectives=("clean_accuracy", "worst_accuracy", "mean_macs"),
        maximise=(True, True, False),
        reference=(0.0, 0.0, 25.0),
        reference_rule="accuracy 0 at the cost of the last exit",
        hypervolume=0.5,
        hypervolume_of={"runs/demo": 0.5},
        points=5,
        points_on_front=2,
        front_of={"runs/demo": 2},
        ratios=(0.5, 2.0),
        conditions=("smallcnn on digits",),
        sha256="ab",
    ),
    GalleryRecord(
        run="demo",
        split="test",
        attack="average",
        settings=SETTINGS,
        engine={"fold": True},
        seed=0,
        judged=True,
        samples=8,
        linf=0.1,
        fingerprint="ab",
        checkpoint_sha256="cd",
        environment=ENVIRONMENT,
    ),
    CHECK,
    HealthRecord(
        run="demo",
        data="digits",
        split="test",
        samples=4,
        seed=0,
        threshold="entropy",
        values=(0.25,),
        settings=SETTINGS,
        checkpoint_sha256="cd",
        environment=ENVIRONMENT,
        started="2026-01-01T00:00:00+00:00",
        seconds=3.5,
        checks=(CHECK,),
    ),
]
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
    ("BankManifest", "sha256"),
    *(("EvalRecord", name) for name in ("draws", "efficacy")),
    *(("WorstRecord", name) for name in ("draws", "transfer")),
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
        kind = WorstRecord if path.stem.endswith("-worst") else files[path.parent.name]
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
    with pytest.raises(UserError, match=rf"not a valid EvalRecord \({where}"):
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
    with pytest.raises(UserError, match=r"record\.json is damaged, not "):
        read(path, Costs)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json does not exist"):
        read(tmp_path / "nowhere.json", Costs)


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("a.json", "b.json"):
        write(tmp_path / name, MANIFEST)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_costs_of_the_counter_fit_the_record(tiny):
    from rdi import macs

    counted = macs.count(tiny(), (1, 8, 8))
    assert asdict(Costs(**asdict(counted))) == asdict(counted)
