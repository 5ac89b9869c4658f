"""Jobs of a sweep that were finished before, known without composing their configs.

A job that ends well leaves a note in `<hydra.sweep.dir>/finished/`: under a hash of all that its config is composed of,
the outcome and the sizes and times of every file that it left. A job with such a note and such files, untouched, is
finished; whatever differs, the job runs and finds out for itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import rdi
from rdi.runs.outcome import Outcome

PASSING = ("wandb", "log.txt", ".lock")
"""Entries of a run folder that change without a change of the run."""
UNSTABLE = re.compile(r"\$\{(hydra|now|oc\.create|oc\.dict):")
"""Interpolations by which a config depends on more than its files and the words typed."""
VARIABLE = re.compile(r"oc\.env:\s*'?\"?(\w+)")


@dataclass(frozen=True)
class Sweep:
    """The jobs of a sweep.

    command: of `rdi`.
    name: of its jobs.
    place: folder of the sweep.
    conf: folders of config files.
    sweeps: folders of grids.
    """

    command: str
    name: str
    place: Path
    conf: tuple[str, ...]
    sweeps: str

    def outcomes(self, jobs: Sequence[Sequence[str]]) -> list[Outcome | None]:
        """Return what each job came to, for those that are finished; None for those that must run.

        jobs: the overrides of each.
        """
        base = self._base()
        if base is None or not self.notes.is_dir():
            return [None] * len(jobs)
        return [_read(self.notes / f"{key}.json") if (key := _key(base, job)) else None for job in jobs]

    def remember(self, words: Sequence[str], outcome: Any) -> None:
        """Leave the note of a job of these overrides that came to `outcome`."""
        base = self._base()
        if not isinstance(outcome, Outcome) or base is None or (key := _key(base, words)) is None:
            return
        roots = [outcome.folder]
        if self.name == "run":
            roots.append(str(Path("reports") / Path(outcome.folder).resolve().name))
        note = {
            "folder": outcome.folder,
            "objectives": list(outcome),
            "split": outcome.split,
            "files": {root: _files(Path(root)) for root in roots},
        }
        self.notes.mkdir(parents=True, exist_ok=True)
        part = self.notes / f".{key}.{os.getpid()}"
        part.write_text(json.dumps(note))
        part.replace(self.notes / f"{key}.json")

    @property
    def notes(self) -> Path:
        """Folder of the notes."""
        return self.place / "finished"

    def _base(self) -> str | None:
        """Hash of command, place, code, config files, and variables named in them.

        None when the config files depend on more than that.
        """
        content, names, stable = _content(self.conf, tuple(_stamps([*self.conf, self.sweeps])))
        if not stable:
            return None
        environment = [(name, os.environ.get(name)) for name in names]
        return _sha256(json.dumps([(self.command, self.name), os.getcwd(), code(), content, self.conf, environment]))


def _key(base: str, words: Sequence[str]) -> str | None:
    """Hash of a job; None for one that is never known before it runs."""
    task = [word for word in words if not word.lstrip("+~").startswith(("hydra.", "hydra/"))]
    if any(UNSTABLE.search(word) or word.lstrip("+").startswith("overwrite=") for word in task):
        return None
    environment = [(name, os.environ.get(name)) for word in task for name in VARIABLE.findall(word)]
    return _sha256(json.dumps([base, task, environment]))


def _stamps(folders: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    for folder in folders:
        for path in sorted(Path(folder).rglob("*.yaml")):
            state = path.stat()
            yield str(path), state.st_size, state.st_mtime_ns


@cache
def _content(folders: tuple[str, ...], stamps: tuple[tuple[str, int, int], ...]) -> tuple[str, list[str], bool]:
    """Hash of the config files, the variables that they name, and whether there is nothing UNSTABLE in them."""
    texts = {path: Path(path).read_text(errors="replace") for path, _, _ in stamps}
    names = sorted({name for text in texts.values() for name in VARIABLE.findall(text)})
    stable = not any(UNSTABLE.search(text) for text in texts.values())
    return _sha256(json.dumps(list(texts.items()))), names, stable


@cache
def code() -> str:
    """Return a hash of this program's sources and the versions of what composes configs."""
    root = Path(rdi.__file__).parents[1]
    sources = [path for top in ("rdi", "hydra_plugins") for path in sorted((root / top).rglob("*.py"))]
    digest = hashlib.sha256(f"{version('hydra-core')} {version('omegaconf')}".encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> Outcome | None:
    """The outcome in a note; None when there is none, or what it tells of is not there as it was left."""
    try:
        note = json.loads(path.read_text())
        folder, files = note["folder"], note["files"]
        whole = (Path(folder) / "done").is_file() and all(_files(Path(root)) == files[root] for root in files)
        return Outcome(folder, True, note["objectives"], note["split"]) if whole and folder in files else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _files(root: Path) -> dict[str, list[int]]:
    """Path below `root` -> size and time of every file there, but for PASSING ones."""
    found: dict[str, list[int]] = {}
    folders = [root]
    while folders:
        folder = folders.pop()
        if not folder.is_dir():
            continue
        for entry in os.scandir(folder):
            if folder == root and entry.name in PASSING:
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            else:
                state = entry.stat()
                found[os.path.relpath(entry.path, root)] = [state.st_size, state.st_mtime_ns]
    return found


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
