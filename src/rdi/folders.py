"""The run folder: where the files of one run lie, and what state it is in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rdi.errors import UserError
from rdi.locks import hold
from rdi.records import Manifest, read
from rdi.storage import PARTIAL
from rdi.text import file_name, is_visible, visible
from rdi.threats import AT, WORST, ThreatModel, in_order


def report_folder(name: str, option: str = "name") -> Path:
    """Return the folder below reports/ that is called by the value of an option. Raises UserError for no plain name."""
    folder = Path("reports") / file_name(option, name)
    if wrong := next((place for place in (folder.parent, folder) if place.exists() and not place.is_dir()), None):
        raise UserError(f"{wrong} is a file where a folder belongs: move it away")
    return folder


SPLITS = ("train", "validation", "calibration", "test")
FOLDERS = ("banks", "gallery", "thresholds", "evals", "bounds", "certificates", "health", "corrupted", "corruptions")
BANKS = ("banks", "corrupted")
"""Folders of a run folder; all else that lies in it is a file, and so is what lies in them, but the banks of BANKS."""


class RunFolder:
    """The files of one run. Its state is visible: absent, present without `done` (resumable), or with `done`."""

    def __init__(self, path: Path | str) -> None:
        if not isinstance(path, str | Path):
            raise UserError(f"a run is named by its folder, as 'runs/demo', got {path!r}")
        self.path = Path(path)
        if not is_visible(str(self.path)):
            raise UserError(f"the run folder '{visible(str(self.path))}' has control characters in its name: rename it")
        self.manifest = self.path / "manifest.json"
        self.log = self.path / "log.txt"
        self.progress = self.path / "train.jsonl"
        self.splits = self.path / "splits.npz"
        self.trained_on = self.path / "trained_on.npz"
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
        """Return the folder of the bank of `attack` on `split`."""
        return self.path / "banks" / file_name("the name of an attack", f"{split}-{attack}")

    def partial_bank(self, split: str, attack: str) -> Path:
        """Return the file with the state of an unfinished attack on `split`."""
        return self.path / "banks" / f"{self.bank(split, attack).name}.begun.npz"

    def banks(self, split: str) -> dict[str, Path]:
        """Return name -> finished bank on `split`, in the order of rows everywhere (threats.in_order).

        Raises UserError for half a bank: what is damaged is not absent.
        """
        found = [path for path in (self.path / "banks").glob(f"{split}-*") if path.is_dir()]
        if odd := next((folder for folder in found if not is_visible(folder.name)), None):
            raise UserError(f"{visible(str(odd))} has control characters in its name, which no bank has: remove it")
        if half := next((folder for folder in found if not (folder / "manifest.json").is_file()), None):
            raise UserError(f"{half} is damaged, it has no manifest.json: restore it, or delete it and attack again")
        names = in_order(folder.name.removeprefix(f"{split}-") for folder in found)
        return {name: self.bank(split, name) for name in names}

    def corrupted(self, split: str) -> dict[str, Path]:
        """Return name -> bank of corrupted images of `split`; KIND_SEVERITY are the names."""
        found = sorted(path for path in (self.path / "corrupted").glob(f"{split}-*") if path.is_dir())
        return {folder.name.removeprefix(f"{split}-"): folder for folder in found}

    def corruptions(self, threshold: str, split: str) -> Path:
        """Return the file of the record of thresholds `threshold` on corrupted images of `split`."""
        return self.path / "corruptions" / f"{self.thresholds(threshold).stem}__{split}.json"

    def gallery(self, split: str, attack: str) -> Path:
        """Record of the images kept to be looked at, of `attack` on `split`; the images lie beside it."""
        return self.path / "gallery" / f"{self.bank(split, attack).name}.json"

    def thresholds(self, name: str) -> Path:
        """Return the file of the fitted thresholds `name`."""
        return self.path / "thresholds" / f"{file_name('the name of thresholds', name)}.json"

    def evaluation(self, threshold: str, split: str, attack: str) -> Path:
        """Return the file of the record of thresholds `threshold` on the bank of `attack` on `split`."""
        return self.path / "evals" / f"{self.thresholds(threshold).stem}__{self.bank(split, attack).name}.json"

    def worst(self, threshold: str, split: str, other: ThreatModel | None = None) -> Path:
        """Return the file of the worst case under the thresholds `threshold`.

        other: threat model, None: the run's own.
        """
        return self.evaluation(threshold, split, WORST if other is None else f"{WORST}@{other.word}")

    def early_exit(self, threshold: str, split: str, other: ThreatModel | None = None) -> Path:
        """Return the picture of the early-exit curves under the thresholds `threshold`.

        other: as in `worst`.
        """
        apart = "" if other is None else f"@{other.word}"
        return self.path / "evals" / f"{self.thresholds(threshold).stem}__{split}-early-exit{apart}.png"

    def bounds(self, split: str, other: ThreatModel | None = None) -> Path:
        """Record of the bounds of `split`; the bounds lie beside it.

        other: as in `worst`.
        """
        return self.path / "bounds" / f"{split if other is None else f'{split}@{other.word}'}.json"

    def bounded(self, split: str, own: ThreatModel) -> list[ThreatModel]:
        """Return the threat models that there are bounds of `split` for; `own` is the run's, which is first."""
        names = (file.stem.partition(AT) for file in self.bounds(split).parent.glob("*.json"))
        found = {ThreatModel.read(word) if word else own for name, _, word in names if name == split}
        return sorted((one for one in found if one is not None), key=lambda one: (one != own, one))

    def certificate(self, threshold: str, split: str, other: ThreatModel | None = None) -> Path:
        """Return the file of the certificate of the thresholds `threshold`.

        other: as in `worst`.
        """
        return self.path / "certificates" / f"{self.thresholds(threshold).stem}__{self.bounds(split, other).name}"

    def health(self, threshold: str, other: ThreatModel | None = None) -> Path:
        """Return the file of the record of `rdi health` under the thresholds `threshold`.

        other: as in `worst`.
        """
        apart = "" if other is None else f"{AT}{other.word}"
        return self.path / "health" / f"{self.thresholds(threshold).stem}{apart}.json"

    def deployed(self) -> str:
        """Return the name of the exit policy that figures of this run are of.

        It is the one whose health was checked under the run's own threat model, else the only one judged.
        Raises UserError where this leaves it open.
        """
        healthy = [path.stem for path in self.path.glob("health/*.json") if AT not in path.stem]
        judged = [path.name.partition("__")[0] for path in self.path.glob("evals/*__test-worst.json")]
        for names in (healthy, judged):
            if len(names) == 1:
                return names[0]
        raise UserError(
            f"{self.path}: health was checked under {', '.join(sorted(healthy)) or 'no exit policy'}, worst cases are "
            f"of {', '.join(sorted(judged)) or 'none'}: run `rdi evaluate` and `rdi health` with the deployed one"
        )

    def check_places(self) -> None:
        """Raise UserError for a folder where a file belongs, or a file where a folder does."""
        for entry, is_dir in _entries(self.path):
            if is_dir and entry.name in self._files():
                raise UserError(f"{entry} is a folder where a file belongs: move it away")
            if not is_dir and entry.name in FOLDERS:
                raise UserError(f"{entry} is a file where a folder belongs: move it away")
            for inner, inside in _entries(entry) if is_dir and entry.name in FOLDERS else ():
                bank = entry.name in BANKS and inner.suffix != ".npz"
                if inside and not bank:
                    raise UserError(f"{inner} is a folder where a file belongs: move it away")
                if not inside and bank and inner.name.partition("-")[0] in SPLITS:
                    raise UserError(f"{inner} is a file where the folder of a bank belongs: move it away")
                for file, folder in _entries(inner) if inside else ():
                    if folder:
                        raise UserError(f"{file} is a folder where a file belongs: move it away")

    def _files(self) -> set[str]:
        return {path.name for path in vars(self).values() if path.parent == self.path}

    def started(self) -> bool:
        """Return whether there is a run here, finished or not."""
        return self.manifest.is_file()

    def finished(self) -> bool:
        """Return whether training (or import) came to its end."""
        return self.done.is_file()

    def read_finished(self) -> Manifest:
        """Read the manifest of a finished run. Raises UserError for a folder that is no run or not finished."""
        if self.path.is_file():
            raise UserError(f"{self.path} is a file, and a run is a folder: did you mean run={self.path.parent}?")
        if not self.path.is_dir():
            raise UserError(f"no run folder {self.path}: train one with `rdi train run={self.path} data=...`")
        self.check_places()
        if not self.started():
            raise UserError(f"{self.path} is not a run folder (it has no manifest.json)")
        if not self.finished():
            raise UserError(f"{self.path} is not finished: go on with `rdi train run={self.path}`")
        return read(self.manifest, Manifest)

    def foreign(self) -> bool:
        """Return whether something that is no run lies here; hidden files (locks, leftovers) do not count."""
        if self.started() or not self.path.exists():
            return False
        return not self.path.is_dir() or any(not entry.name.startswith(".") for entry in self.path.iterdir())

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other processes off this folder (locks.hold), and clear away what a killed one left half-written."""
        with hold(self.path):
            if self.started():
                self.check_places()
                for pattern in (f".*{PARTIAL}", f"*/.*{PARTIAL}"):
                    for left in self.path.glob(pattern):
                        shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield


def _entries(folder: Path) -> list[tuple[Path, bool]]:
    """List a folder, hidden files left out, and which of it are folders, in order."""
    try:
        with os.scandir(folder) as found:
            return sorted((Path(one.path), one.is_dir()) for one in found if not one.name.startswith("."))
    except NotADirectoryError:
        return []
