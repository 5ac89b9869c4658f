"""`rdi list` and `rdi table` on folders that somebody else filled: nothing runs, nothing hangs, one line says what."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import pytest

from helpers.listed import copy, listed
from rdi import listing
from rdi.cli import main

CANARY = {"_target_": "torch.utils.collect_env.run", "command": "touch canary"}
ESCAPES = "a\x1b[31mred\x1b]0;x\x07"


def edit(path, change):
    """Change a JSON file as whoever sends it to somebody would: without a checksum that tells."""
    content = json.loads(path.read_text())
    content.pop("checksum", None)
    change(content)
    path.write_text(json.dumps(content))


def manifest(change):
    return lambda run: edit(run / "manifest.json", change)


def record(change):
    return lambda run: edit(run / "evals" / "paper_smallcnn__test-clean.json", change)


def pipe(name):
    def make(run):
        (run / name).unlink()
        os.mkfifo(run / name)

    return make


def link(name):
    def make(run):
        outside = run.parent.parent / "outside"
        shutil.move(run / name, outside)
        (run / name).symlink_to(outside)

    return make


def folder(name):
    def make(run):
        (run / name).unlink()
        (run / name).mkdir()

    return make


RUNS_CODE = {
    "backbone": manifest(lambda m: m["config"]["backbone"].update(dropout=CANARY)),
    "score": manifest(lambda m: m["config"]["threshold"].update(score=CANARY)),
    "data": manifest(lambda m: m["config"]["data"].update(root=CANARY)),
}
HARM = {
    **RUNS_CODE,
    "escape codes in a class": manifest(lambda m: m["data"]["class_names"].__setitem__(0, ESCAPES)),
    "escape codes in a choice": manifest(lambda m: m["choices"].update(backbone=ESCAPES)),
    "numbers as text": manifest(lambda m: m.update(exits="three")),
    "a manifest that is a pipe": pipe("manifest.json"),
    "a manifest that is a folder": folder("manifest.json"),
    "a record with escape codes": record(lambda r: r.update(run=ESCAPES)),
    "a record that is a pipe": pipe("evals/paper_smallcnn__test-clean.json"),
    "an accuracy out of range": record(lambda r: r.update(accuracy=1e300)),
    "a saving out of range": record(lambda r: r.update(saving=-1e300)),
    "a record without keys": record(lambda r: r.clear()),
}

HARMLESS = {
    "a choice that is a path": manifest(lambda m: m["choices"].update(threshold="../../outside")),
    "a manifest that is a link out": link("manifest.json"),
    "records that are a link out": link("evals"),
}
"""What is read wherever it lies; only what is written must stay in the folder."""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory with runs/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RDI_DATA", raising=False)
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


@pytest.mark.parametrize("harm", HARM)
def test_list_marks_a_hostile_folder_and_shows_the_others(harm, home, capsys):
    copy("smallcnn-standard-seed0", home / "whole")
    HARM[harm](copy("smallcnn-average-seed0", home / "bad"))
    out = listed(capsys)
    assert listing.read_run(home / "bad").state == listing.DAMAGED
    assert "1 judged, 1 damaged" in out
    assert "\x1b" not in out
    assert "\x07" not in out
    rows = list(csv.DictReader(io.StringIO(listed(capsys, "csv=true"))))
    assert {row["state"] for row in rows} == {"judged", "damaged"}
    assert not Path("canary").exists()


@pytest.mark.parametrize("harm", HARMLESS)
def test_list_writes_nothing_through_a_link(harm, home, capsys):
    HARMLESS[harm](copy("smallcnn-average-seed0", home / "odd"))
    before = {path: path.lstat().st_mtime_ns for path in home.parent.rglob("*")}
    assert "1 in runs: 1 judged" in listed(capsys)
    assert {path: path.lstat().st_mtime_ns for path in home.parent.rglob("*")} == before


@pytest.mark.parametrize("harm", HARM | HARMLESS)
def test_a_table_over_a_hostile_folder_ends_in_one_line(harm, home, capsys):
    run = copy("smallcnn-standard-seed0", home / "tables" / "cpu" / "smallcnn-standard-seed0")
    (HARM | HARMLESS)[harm](run)
    before = sorted(home.parent.rglob("*"))
    with pytest.raises(SystemExit) as end:
        main(["table", "name=smallcnn", "profile=cpu", "rows=[standard]"])
    said = capsys.readouterr()
    assert end.value.code == 2
    assert "Traceback" not in said.err
    assert "\x1b" not in said.out + said.err
    assert not Path("canary").exists()
    if harm in RUNS_CODE:
        assert "names torch.utils.collect_env.run" in said.err
        assert sorted(home.parent.rglob("*")) == before, "nothing is written"


@pytest.mark.parametrize(
    "words",
    [
        ["name=../../x"],
        ["name=/etc/passwd"],
        ["name=smallcnn", "profile=../x"],
        ["name=smallcnn", "rows=[../x]"],
        ["name=smallcnn", f"rows=['{ESCAPES}']"],
    ],
)
def test_a_table_has_no_name_that_leads_elsewhere(words, home, capsys):
    before = sorted(home.parent.rglob("*"))
    with pytest.raises(SystemExit) as end:
        main(["table", *words])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert "Traceback" not in said
    assert "\x1b" not in said
    assert sorted(home.parent.rglob("*")) == before
