"""The command line in processes of its own, and how a command ends."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

TINY = (
    "tracking=none threads=1 evaluations=1 calibration_samples=16 optim.epochs=null optim.iterations=2 attack.steps=1"
)


class Result(NamedTuple):
    """How a command ended: exit status, stdout, stderr."""

    status: int
    out: str
    err: str

    @property
    def errors(self):
        """The lines on stderr that report a mistake."""
        return [line for line in self.err.splitlines() if line.startswith("rdi")]


def environment(**more):
    """Environment for a subprocess: this checkout first."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONWARNINGS": "ignore", **more}


def start(line, **options):
    """`rdi LINE` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "rdi", *shlex.split(line)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
