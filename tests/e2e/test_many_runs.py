"""What commands over many runs read: so much of each run, and nothing twice because there are others."""

import os
import shutil
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from rdi.banks import LogitsBank
from rdi.runs import front, points_index
from rdi.runs.finished import Sweep
from rdi.runs.options import Ball
from rdi.runs.outcome import Outcome

_heard = []


def _hear(event, arguments):
    if _heard and event in ("open", "os.scandir") and not isinstance(arguments[0], int):
        _heard[-1].append((event, os.fspath(arguments[0])))


sys.addaudithook(_hear)  # it cannot be taken away again


@contextmanager
def reading():
    """A list of the files that are opened and the folders that are listed inside, as (event, path)."""
    _heard.append([])
    try:
        yield _heard[-1]
    finally:
        _heard.pop()


def test_a_finished_job_costs_the_read_of_a_note_and_the_lists_of_its_folders():
    sweep = Sweep("train", "train", Path("sweep"), (), "sweeps")
    jobs = [[f"seed={number}"] for number in range(200)]
    for number, job in enumerate(jobs):
        folder = Path("runs", str(number))
        (folder / "banks" / "test-clean").mkdir(parents=True)
        for name in ("done", "manifest.json", "banks/test-clean/bank.npz"):
            (folder / name).write_bytes(b"x")
        sweep.remember(job, Outcome(str(folder), skipped=False))
    with reading() as read:
        found = sweep.outcomes(jobs)
    assert [outcome.folder for outcome in found] == [f"runs/{number}" for number in range(200)]
    counts = Counter(event for event, path in read if Path(path).parts[0] in ("runs", "sweep"))
    assert counts == {"open": 200, "os.scandir": 3 * 200}
    Path("runs/7/banks/test-clean/bank.npz").write_bytes(b"xy")
    assert [job for job, outcome in zip(jobs, sweep.outcomes(jobs), strict=True) if outcome is None] == [["seed=7"]]


def copies(demo, count):
    """Copies of the demo's run, and the function that makes their front: (files of runs that were opened, Front)."""
    runs = [Path("runs") / name for name in "abcd"[:count]]
    for run in runs:
        shutil.copytree(demo, run)
    time.sleep(2 * points_index.SETTLED)
    options = SimpleNamespace(ratios=3, threat=Ball(), reference_macs=None, name="many")

    def compute(several):
        with reading() as read:
            made = front.compute(front.named([str(run) for run in several]), options)
        return Counter(path for event, path in read if event == "open" and Path(path).parts[0] == "runs"), made

    return runs, compute


def test_a_front_reads_of_a_run_what_it_reads_of_one_alone(demo, tmp_path, monkeypatch):
    runs, compute = copies(demo, 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    alone, _ = compute(runs[:1])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "four"))
    together, made = compute(runs)
    assert len(made.points) == 3 * len(runs)
    assert {Path(path).name for path in alone} == {"manifest.json", "bank.npz"}
    assert together == {str(run / Path(path).relative_to("runs/a")): n for path, n in alone.items() for run in runs}


def test_a_front_reads_no_run_again_that_has_not_changed(demo, tmp_path, monkeypatch):
    runs, compute = copies(demo, 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    _, first = compute(runs)
    front.write(first)
    written = {path.name: path.read_bytes() for path in first.out.glob("*.*")}
    read, again = compute(runs)
    assert not read
    assert again.record == first.record
    assert list(again.points) == list(first.points)
    front.write(again)
    assert {path.name: path.read_bytes() for path in again.out.glob("*.*")} == written
    bank = next(runs[1].glob("banks/test-clean/bank.npz"))
    found = LogitsBank.load(bank.parent)
    found.logits.neg_()
    found.save(bank.parent)
    time.sleep(2 * points_index.SETTLED)
    read, changed = compute(runs)
    assert {Path(path).parts[1] for path in read} == {runs[1].name}
    assert [row["clean_accuracy"] for row in changed.points][3:6] != [row["clean_accuracy"] for row in first.points][
        3:6
    ]
    assert list(changed.points)[:3] == list(first.points)[:3]
