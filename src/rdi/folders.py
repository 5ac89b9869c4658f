"""The run folder: where the files of one run lie, and what state it is in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rdi.errors import UserError
from rdi.locks import hold
from rdi.records import PARTIAL, Manifest, read


class RunFolder:
    """The files of one run. Its state is visible: absent, present without `done` (resumable), or with `done`."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest = self.path / "manifest.json"
        self.log = self.path / "log.txt"
        self.progress = self.path / "train.jsonl"
        self.splits = self.path / "splits.npz"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.best = self.path / "best.safetensors"
        self.last = self.path / "last.safetensors"
        self.factors = self.path / "factors.safetensors"
        self.size = self.path / "size.json"
        self.resume = self.path / "resume.pt"
        self.done = self.path / "done"

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    def bank(self, split: str, attack: str) -> Path:
        """Folder of the bank of `attack` on `split`."""
        return self.path / "banks" / f"{split}-{attack}"

    def half_bank(self, split: str, attack: str) -> Path:
        """File of what an unfinished attack on `split` has come to."""
        return self.path / "banks" / f"{split}-{attack}.begun.npz"

    def banks(self, split: str) -> dict[str, Path]:
        """Attack name -> finished bank on `split`, in the order in which they were made."""
        found = [p.parent for p in (self.path / "banks").glob(f"{split}-*/manifest.json")]
        found.sort(key=lambda folder: (folder / "manifest.json").stat().st_mtime_ns)
        return {folder.name.removeprefix(f"{split}-"): folder for folder in found}

    def gallery(self, split: str, attack: str) -> Path:
        """Record of the images kept to be looked at, of `attack` on `split`; the images lie beside it."""
        return self.path / "gallery" / f"{split}-{attack}.json"

    def thresholds(self, name: str) -> Path:
        """File of the fitted thresholds `name`."""
        return self.path / "thresholds" / f"{name}.json"

    def evaluation(self, threshold: str, split: str, attack: str) -> Path:
        """File of the record of thresholds `threshold` on the bank of `attack` on `split`."""
        return self.path / "evals" / f"{threshold}__{split}-{attack}.json"

    def early_exit(self, threshold: str, split: str) -> Path:
        """Picture of the early-exit curves under the thresholds `threshold`."""
        return self.path / "evals" / f"{threshold}__{split}-early-exit.png"

    def health(self, threshold: str) -> Path:
        """File of the record of `rdi health` under the thresholds `threshold`."""
        return self.path / "health" / f"{threshold}.json"

    def started(self) -> bool:
        """Whether there is a run here, finished or not."""
        return self.manifest.is_file()

    def finished(self) -> bool:
        """Whether training (or import) came to its end."""
        return self.done.is_file()

    def read_finished(self) -> Manifest:
        """The manifest of a finished run. Raises UserError for a folder that is no run or not finished."""
        if not self.path.is_dir():
            raise UserError(f"no run folder {self.path}: train one with `rdi train run={self.path} data=...`")
        if not self.started():
            raise UserError(f"{self.path} is not a run folder (it has no manifest.json)")
        if not self.finished():
            raise UserError(f"{self.path} is not finished: go on with `rdi train run={self.path}`")
        return read(self.manifest, Manifest)

    def foreign(self) -> bool:
        """Whether something that is no run lies here; hidden files (locks, what a killed process left) are nothing."""
        if self.started() or not self.path.exists():
            return False
        return not self.path.is_dir() or any(not entry.name.startswith(".") for entry in self.path.iterdir())

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other processes off this folder, see locks.hold, and clear away what a killed one left half-written."""
        with hold(self.path):
            if self.started():
                for pattern in (f".*{PARTIAL}", f"*/.*{PARTIAL}"):
                    for left in self.path.glob(pattern):
                        shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield
