"""Runs by name: `run=demo` is runs/demo where there is one."""

from __future__ import annotations

import difflib
from glob import has_magic
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.text import is_visible

HOME = Path("runs")
"""Where runs are looked for by name."""
READERS = ("attack", "evaluate", "health", "pareto", "report", "bench", "export")
"""Commands that need a run that is there."""
OTHERS = ("start", "compression.start", "attack.surrogate")
"""Further options that name a run that must be there."""


def settled(command: str, cfg: DictConfig) -> DictConfig:
    """`cfg` with every run that it names as a path. Raises UserError for a name that fits two, or none where one must.

    Options that are no text are left to their own checks.
    """
    for key in ("run", *OTHERS):
        if isinstance(value := _value(cfg, key), str):
            OmegaConf.update(cfg, key, str(path(value, key, needed=command in READERS or key in OTHERS)))
    if isinstance(runs := _value(cfg, "runs"), ListConfig) and command in READERS:
        cfg.runs = [str(path(one, "runs")) if isinstance(one, str) else one for one in runs]
    return cfg


def _value(cfg: DictConfig, key: str) -> Any:
    """Return what an option is set to; None where it is not, or has no value."""
    return OmegaConf.select(cfg, key, throw_on_missing=False)


def path(name: str, key: str = "run", *, needed: bool = True) -> Path:
    """The folder that `name` means: itself, or the one of that name below runs/.

    needed: whether it must be a folder; others may be about to be made. Raises UserError as in `settled`.
    """
    here, there = Path(name), HOME / name
    bare = here.name == name and name not in ("", ".", "..")
    if has_magic(name):
        return there if bare and not list(Path().glob(name)) else here
    if bare and _there(there):
        if not _there(here):
            return there
        if RunFolder(here).started() and RunFolder(there).started():
            raise UserError(f"{key}={name} may be ./{name} or {there}: write {key}=./{name} or {key}={there}")
        return there if RunFolder(there).started() else here
    if needed and not _there(here) and (bare or near(here)):
        raise UserError(f"there is no run {name}{' here or in runs/' if bare else ''}: {_hint(here)}")
    return here


def _there(path: Path) -> bool:
    """Return whether there is a folder; a name that cannot be one is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _runs(folder: Path) -> dict[str, Path]:
    """Name -> run, of those below a folder."""
    try:
        entries = [entry for entry in folder.iterdir() if is_visible(entry.name)]
        return {entry.name: entry for entry in entries if RunFolder(entry).started()}
    except (OSError, ValueError):
        return {}


def near(path: Path) -> list[Path]:
    """Runs whose names are near, the nearest first."""
    names = {**_runs(path.parent), **_runs(HOME)}
    return [names[name] for name in difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)]


def _hint(path: Path) -> str:
    """Runs whose names are near, else how to see or make one."""
    if found := near(path):
        return f"did you mean {' or '.join(map(str, found))}?"
    return "`rdi list` shows those that there are" if _runs(HOME) else "`rdi run run=runs/demo` makes the demo's"
