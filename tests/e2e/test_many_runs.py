"""What commands over many runs read: so much of each run, and nothing twice because there are others."""

import os
import shutil
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from rdi.runs import front
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


def test_a_front_reads_of_a_run_what_it_reads_of_one_alone(demo):
    runs = [Path("runs") / name for name in "abcd"]
    for run in runs:
        shutil.copytree(demo, run)
    options = SimpleNamespace(ratios=3, threat=Ball(), reference_macs=None, name="many")

    def files(several):
        with reading() as read:
            made = front.compute(front.opened([str(run) for run in several]), options)
        assert len(made.points) == 3 * len(several)
        return Counter(path for event, path in read if event == "open" and Path(path).parts[0] == "runs")

    alone, together = files(runs[:1]), files(runs)
    assert {Path(path).name for path in alone} == {"manifest.json", "bank.npz"}
    assert together == {str(run / Path(path).relative_to("runs/a")): n for path, n in alone.items() for run in runs}
