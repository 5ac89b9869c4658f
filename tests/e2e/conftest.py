"""The command line in this process and in processes of its own, in folders that go away."""

import shlex
import shutil
from pathlib import Path

import pytest
import torch

from helpers import browser
from helpers.commands import TINY, Result
from rdi.cli import main
from rdi.report import files


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
def printed():
    """Ask for pictures in every form that `rdi` writes; without it they are PNG alone, drawn in a third of the time."""


@pytest.fixture(autouse=True)
def forms(request, monkeypatch):
    """The forms of pictures."""
    if "printed" not in request.fixturenames:
        monkeypatch.setattr(files, "KINDS", {"png": files.KINDS["png"]})


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
