"""Run folders that are damaged inside: commands say file and key, or which place is of the wrong kind, before work."""

import json
import shutil

import pytest

COMMANDS = (
    "evaluate run=runs/demo tracking=none",
    "pareto runs=runs/demo tracking=none",
    "report runs=runs/demo",
    "attack run=runs/demo",
)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": {}}, "config.backbone is missing"),
        ({"choices": {}}, "choices.backbone is missing"),
        ({"exits": 2}, "costs.macs lists 3 numbers"),
        ({"data": []}, "data"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_manifest_without_its_inner_keys(change, words, rdi, demo):
    tree = json.loads((demo / "manifest.json").read_text())
    del tree["checksum"]
    (demo / "manifest.json").write_text(json.dumps({**tree, **change}))
    for line in COMMANDS:
        result = rdi(line)
        assert (result.status, len(result.errors)) == (2, 1), result.err
        assert "manifest.json" in result.errors[0]
        assert words in result.errors[0]
    assert "damaged" in rdi("list runs=runs/demo").out


@pytest.mark.parametrize(
    "place", ["done", "banks", "banks/test-average", "banks/test-clean/bank.npz", "evals", "thresholds/entropy.json"]
)
def test_a_folder_where_a_file_belongs_and_the_reverse(place, rdi, demo):
    path = demo / place
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("")
    else:
        path.unlink()
        path.mkdir()
    for line in (*COMMANDS, "train run=runs/demo overwrite=true data=digits"):
        result = rdi(line)
        assert (result.status, len(result.errors)) == (2, 1), result.err
        assert str(path) in result.errors[0]


def test_reports_is_a_file(rdi, demo, tmp_path):
    (tmp_path / "reports").write_text("")
    for line in ("pareto runs=runs/demo tracking=none", "report runs=runs/demo", "run run=runs/new data=digits"):
        result = rdi(line)
        assert result.status == 2
        assert "reports is a file where a folder belongs" in result.errors[0]
    assert not (tmp_path / "runs" / "new" / "manifest.json").exists()
