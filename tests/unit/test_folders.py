"""Run folders show their state and say where their files lie."""

import os

import pytest

import rdi
from helpers.examples import BANK, MANIFEST
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.records import write
from rdi.storage import write_bytes
from rdi.threats import ThreatModel


def test_the_state_of_a_run_folder_is_visible(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "demo")
    assert (folder.started(), folder.finished(), folder.name) == (False, False, "demo")
    with pytest.raises(UserError, match="no run folder"):
        folder.read_finished()
    folder.path.mkdir(parents=True)
    with pytest.raises(UserError, match="not a run folder"):
        folder.read_finished()
    write(folder.manifest, MANIFEST)
    assert (folder.started(), folder.finished()) == (True, False)
    with pytest.raises(UserError, match="not finished: go on with `rdi train"):
        folder.read_finished()
    write_bytes(folder.done, b"")
    assert (folder.started(), folder.finished()) == (True, True)
    assert folder.read_finished() == MANIFEST


def test_banks_are_found_when_complete_in_an_order_that_no_copy_changes(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.banks("test") == {}
    for name in ("zebra", "average", "single_exit0"):
        write(folder.bank("test", name) / "manifest.json", BANK)
    write(folder.bank("calibration", "clean") / "manifest.json", BANK)
    write(folder.bank("test", "clean") / "manifest.json", BANK)
    stamps = {"zebra": 1, "average": 2, "single_exit0": 3, "clean": 4}
    for name, stamp in stamps.items():
        os.utime(folder.bank("test", name) / "manifest.json", (stamp, stamp))
    assert list(folder.banks("test")) == ["clean", "single_exit0", "average", "zebra"]
    assert list(folder.banks("calibration")) == ["clean"]
    assert folder.banks("test")["average"] == tmp_path / "banks" / "test-average"
    (folder.bank("test", "zebra") / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"test-zebra is damaged, it has no manifest\.json: restore it, or delete it"):
        folder.banks("test")


def test_files_of_a_run_lie_where_the_design_says(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.evaluation("entropy", "test", "average") == tmp_path / "evals" / "entropy__test-average.json"
    assert folder.thresholds("entropy") == tmp_path / "thresholds" / "entropy.json"
    assert {path.name for path in (folder.manifest, folder.progress, folder.checkpoint, folder.resume)} == {
        "manifest.json",
        "train.jsonl",
        "checkpoint.safetensors",
        "resume.pt",
    }


def test_health_under_another_threat_model_lies_beside_that_of_the_runs_own(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.health("entropy") == tmp_path / "health" / "entropy.json"
    assert folder.health("entropy", ThreatModel(0.5, "l2")) == tmp_path / "health" / "entropy@l2eps0.5.json"
    for path in (folder.health("entropy"), folder.health("entropy", ThreatModel(0.5, "l2"))):
        write_bytes(path, b"")
    assert RunFolder(tmp_path).deployed() == "entropy"


@pytest.mark.parametrize("given", [None, 3, ["runs/demo"]])
def test_what_is_no_path_is_no_run(given):
    for opened in (rdi.load, rdi.load_thresholds, rdi.Run):
        with pytest.raises(UserError, match="a run is named by its folder, as 'runs/demo', got"):
            opened(given)
