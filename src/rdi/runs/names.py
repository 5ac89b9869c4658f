"""Runs by name: `run=demo` is runs/demo where there is one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from glob import glob, has_magic
from pathlib import Path

from rdi.errors import UserError
from rdi.text import is_visible

HOME = Path("runs")
"""Folder in which runs are looked up by name."""


def path(name: str, key: str = "run", *, needed: bool = True) -> Path:
    """Return the folder that `name` means: itself, or the one of that name below runs/.

    needed: whether it must be a folder; others may be about to be made. Raises UserError for a name that fits two, or
    none where one must.
    """
    here, there = Path(name), HOME / name
    bare = here.name == name and name not in ("", ".", "..")
    if has_magic(name):
        return there if bare and not list(Path().glob(name)) else here
    if bare and _there(there):
        if not _there(here):
            return there
        if _started(here) and _started(there):
            raise UserError(f"{key}={name} may be ./{name} or {there}: write {key}=./{name} or {key}={there}")
        return there if _started(there) else here
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
        return {entry.name: entry for entry in entries if _started(entry)}
    except (OSError, ValueError):
        return {}


def near(path: Path) -> list[Path]:
    """Return runs whose names are near, the nearest first."""
    names = {**_runs(path.parent), **_runs(HOME)}
    return [names[name] for name in difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)]


def _hint(path: Path) -> str:
    """Runs whose names are near, else how to see or make one."""
    if found := near(path):
        return f"did you mean {' or '.join(map(str, found))}?"
    return "`rdi list` shows those that there are" if _runs(HOME) else "`rdi run run=runs/demo` makes the demo's"


def run_folders(given: Iterable[str]) -> list[str]:
    """Return the run folders named, patterns such as runs/* replaced by the runs that they match.

    Raises UserError for a pattern that matches none.
    """
    found: list[str] = []
    for name in given:
        if not has_magic(name) or Path(name).exists():
            found.append(name)
            continue
        runs = [path for path in sorted(glob(name)) if _started(Path(path))]
        if not runs:
            raise UserError(f"no run folder matches {name}: `ls {Path(name).parent}` shows what there is")
        known = {Path(path).resolve() for path in found}
        found += [path for path in runs if Path(path).resolve() not in known]
    return found


def folders(given: Sequence[str]) -> list[Path]:
    """Return the folders that patterns, paths and names mean; hidden ones are for machines.

    A pattern without a folder is looked for in runs/, where nothing here fits. Raises UserError for a name that is no
    folder.
    """
    found: dict[Path, None] = {}
    for name in given:
        place = path(name, "runs", needed=False)
        if not has_magic(str(place)):
            if not _there(place):
                raise UserError(f"there is no folder {name}: {_hint(place)}")
            found[place] = None
            continue
        found |= {one: None for one in map(Path, glob(str(place))) if one.is_dir()}
    return list(found)


def _started(path: Path) -> bool:
    from rdi.folders import RunFolder  # with records, which take long to import

    return RunFolder(path).started()
