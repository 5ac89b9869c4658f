"""CPU time of a sweep whose jobs are finished, per job: python dev/sweep_cost.py 50 100 200.

Jobs are composed by Hydra as always but train nothing: they leave a folder of 40 small files. "first" is a call in
which all jobs run, "again" one in which all are finished; a job costs the difference between two numbers of jobs.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rdi.cli import main, train
from rdi.runs.outcome import Outcome


def job(cfg: Any) -> Outcome:
    """Leave what a finished run leaves."""
    folder = Path("runs") / f"r{cfg.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("done", *(f"file{k}" for k in range(39))):
        (folder / name).write_text("x" * 100)
    return Outcome(str(folder), skipped=False)


def measure(jobs: int) -> float:
    """CPU seconds of one call."""
    began = time.process_time()
    main(["train", "-m", f"seed=range(0,{jobs})", "tracking=none"])
    return time.process_time() - began


if __name__ == "__main__":
    train.run = job  # type: ignore[assignment]
    before = None
    print(f"{'jobs':>5} {'first s':>8} {'again s':>8} {'ms a job, first':>16} {'again':>7} {'ratio':>6}")
    for count in sorted(map(int, sys.argv[1:])):
        with tempfile.TemporaryDirectory() as place:
            os.chdir(place)
            line = (count, measure(count), measure(count))
        more = ""
        if before is not None:
            first, again = (1000 * (line[k] - before[k]) / (count - before[0]) for k in (1, 2))
            more = f"{first:16.1f} {again:7.2f} {again / first:6.3f}"
        print(f"{count:5} {line[1]:8.2f} {line[2]:8.2f} {more}", flush=True)
        before = line
