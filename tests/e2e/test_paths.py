"""Whatever lies where an option points: one line, exit status 2, and everything as it was."""

import os
from pathlib import Path

import pytest

from helpers.mistakes import refused

LINES = (
    "train run=r data=mnist data.download=false data.root=",
    "train run=r data=imagefolder data.root=",
    "train run=r start=",
    "import run=r backbone=resnet38 data=cifar10 checkpoint=",
    "import run=r backbone=smallcnn data=digits weights=",
    "attack run=",
    "report runs=",
    "list --config-dir ",
    "train optim.iterations=-1 run=",
)
ODD = os.fsdecode(b"odd\xff")
"""A name that is not UTF-8."""
KINDS = {
    "file": lambda: Path("file").write_text("x"),
    "folder": lambda: Path("folder").mkdir(),
    "missing": None,
    "file/below": lambda: Path("file").write_text("x"),
    "/dev/null": None,
    "pipe": lambda: os.mkfifo("pipe"),
    "loop": lambda: Path("loop").symlink_to("loop"),
    "dangling": lambda: Path("dangling").symlink_to("nothing"),
    "closed": lambda: Path("closed").mkdir(mode=0),
    "secret": lambda: (Path("secret").write_text("x"), Path("secret").chmod(0)),
    ODD: lambda: Path(ODD).mkdir(),
    "a" * 300: None,
    "a/" * 2100 + "a": None,
}


def left():
    """What lies here: names, kinds and contents."""
    return {path.name: (path.lstat().st_mode, path.lstat().st_size) for path in Path().iterdir()}


@pytest.mark.parametrize("line", LINES)
def test_a_path_that_does_not_do_is_told_in_one_line(line, rdi):
    for name, make in KINDS.items():
        if make and not os.path.lexists(name.partition("/")[0]):
            make()
    before = left()
    for name in KINDS:
        if line.endswith("config-dir ") and name in ("folder", "closed", ODD):
            continue  # an empty folder adds nothing
        refused(rdi(line + name), "rdi")
        assert left() == before, name


def test_a_folder_that_a_failed_download_did_not_make_stays(monkeypatch):
    from torchvision import datasets

    from rdi.data import Torchvision
    from rdi.errors import UserError

    def offline(self):
        Path(self.raw_folder).mkdir(parents=True, exist_ok=True)
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets.MNIST, "download", offline)
    Path("mine").mkdir()
    for root in ("mine", "new"):
        with pytest.raises(UserError, match="no network"):
            Torchvision(name="mnist", dataset="MNIST", root=root, calibration=10).load()
    assert [path.name for path in Path().iterdir()] == ["mine"]
    assert list(Path("mine").iterdir()) == []
