"""The command line in this process and in processes of its own, in folders that go away."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import browser
import pytest
import torch

from rdi.cli import main

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


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, tmp_path_factory, monkeypatch):
    """Every test starts in an empty folder, with caches of its own and the user's settings out of the way."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in ("RDI_DATA", "RDI_CONF_DIR", "RDI_SWEEP_DIR", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rdi(capsys):
    """rdi(line) -> Result of `rdi LINE`, run in this process."""

    def run(line):
        capsys.readouterr()
        status = 0
        try:
            main(shlex.split(line))
        except SystemExit as error:
            status = error.code or 0
        return Result(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A tiny finished, attacked and evaluated run on the digits; read only."""
    folder = tmp_path_factory.mktemp("finished") / "demo"
    torch.set_num_threads(1)
    main(
        shlex.split(
            f"run run={folder} {TINY} suite=quick samples=16 threat.test_steps=1 stages=[train,attack,evaluate]"
        )
    )
    return folder


@pytest.fixture
def demo(finished, tmp_path):
    """A copy of that run to spoil, at runs/demo."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "demo")).relative_to(tmp_path)


@pytest.fixture(scope="module")
def chromium():
    """A headless browser for all tests of a file."""
    if browser.EXECUTABLE is None:
        pytest.skip(f"no browser here: none of {', '.join(browser.NAMES)}")
    one = browser.Browser()
    yield one
    one.close()
