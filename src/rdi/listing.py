"""List runs at a glance: state, headline figures, settings. Reads small JSON files only."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.records import CertificateRecord, CorruptionRecord, EvalRecord, Manifest, WorstRecord, read
from rdi.storage import read_json, sha256
from rdi.threats import AT, CLEAN, WORST

JUDGED, ATTACKED, TRAINED, RUNNING, BEGUN, DAMAGED, NO_RUN = STATES = (
    "judged",
    "attacked",
    "trained",
    "running",
    "begun",
    "damaged",
    "no run",
)
"""finished and judged, attacked but not judged, neither; being worked on, resumable; unreadable; something else."""
ELSEWHERE = ("run", "sweep", "device", "threads", "ranks", "tracking", "overwrite", "data.root", "data.download")
"""Settings that say nothing about a run."""


@dataclass(frozen=True)
class Listed:
    """One run folder.

    state: one of STATES.
    why: what is damaged.
    settings: dotted option -> value, or group -> choice.
    groups: which of them are groups.
    clean, worst, certified, corrupted, saved: fractions on the test images, by the run's own exit policy where it was
        judged by that, under its own threat model; None: not known.
    ended: UTC, "" before that.
    """

    path: Path
    state: str
    why: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    clean: float | None = None
    worst: float | None = None
    certified: float | None = None
    corrupted: float | None = None
    saved: float | None = None
    ended: str = ""


def read_run(path: Path) -> Listed:
    """Read at a glance what lies in a folder; never raises for what it finds there."""
    try:
        return _read_run(RunFolder(path))
    except (UserError, OSError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split()).removeprefix(f"{path}/")
        return Listed(path, DAMAGED, textwrap.shorten(why, 100, placeholder=" ..."))


def _read_run(folder: RunFolder) -> Listed:
    if not folder.manifest.is_file():
        remains = any(one.exists() for one in (folder.manifest, folder.done, folder.checkpoint))
        return Listed(folder.path, DAMAGED if remains else NO_RUN, "no manifest.json" if remains else "")
    folder.check_places()
    manifest = read(folder.manifest, Manifest)
    settings = flat(manifest.config, manifest.choices)
    groups = tuple(manifest.choices)
    if not folder.finished():
        return Listed(folder.path, RUNNING if is_locked(folder.path) else BEGUN, settings=settings, groups=groups)
    if not folder.checkpoint.is_file():
        return Listed(folder.path, DAMAGED, f"no {folder.checkpoint.name}", settings, groups)
    ended = manifest.ended or ""
    policy = judged_by(folder, manifest.choices.get("threshold", ""))
    if policy is None:
        attacked = any(name != f"test-{CLEAN}" for name in _names(folder.path / "banks") if name.startswith("test-"))
        return Listed(folder.path, ATTACKED if attacked else TRAINED, settings=settings, groups=groups, ended=ended)
    stale = _check_banks(folder, policy)
    if stale:
        return Listed(folder.path, ATTACKED, stale, settings, groups, ended=ended)
    clean = _read(folder.evaluation(policy, "test", CLEAN), EvalRecord)
    worst = _read(folder.evaluation(policy, "test", WORST), WorstRecord)
    certificate = _read(folder.certificate(policy, "test"), CertificateRecord)
    common = _read(folder.corruptions(policy, "test"), CorruptionRecord)
    return Listed(
        folder.path,
        JUDGED,
        settings=settings,
        groups=groups,
        clean=clean and clean.accuracy,
        worst=worst and worst.accuracy,
        certified=certificate and certificate.accuracy,
        corrupted=common and common.accuracy,
        saved=clean and clean.saving,
        ended=ended,
    )


def _check_banks(folder: RunFolder, policy: str) -> str:
    """Look at the banks that stored figures are of; what is newer than them in words, else nothing.

    The arrays themselves are read where they were written after they were judged. Raises UserError for a bank that is
    gone or damaged.
    """
    begin = f"{policy}__test-"
    for name in _names(folder.path / "evals"):
        attack = name.removeprefix(begin).removesuffix(".json")
        if not name.startswith(begin) or not name.endswith(".json") or attack.partition(AT)[0] == WORST:
            continue
        record_path, bank = folder.path / "evals" / name, folder.bank("test", attack)
        arrays = bank / "bank.npz"
        for path in (bank / "manifest.json", arrays):
            if not path.is_file():
                raise UserError(f"{path} is missing")
        judged = _text(record_path, "bank_sha256")
        made = _text(bank / "manifest.json", "sha256")
        if made not in ("", judged):
            return f"{attack} was made anew, and not judged since"
        if arrays.stat().st_mtime_ns > record_path.stat().st_mtime_ns and sha256(arrays) != judged:
            raise UserError(f"{arrays} is damaged: it is not what was judged")
    return ""


def _text(path: Path, key: str) -> str:
    """A text in a small JSON file, "" where it has none; read without the checks that `read` takes its time for."""
    content = read_json(path)
    value = content.get(key) if isinstance(content, dict) else None
    return value if isinstance(value, str) else ""


def _read(path: Path, kind: Any) -> Any:
    """A record; None where there is nothing, not even a link that leads nowhere."""
    return read(path, kind) if os.path.lexists(path) else None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def judged_by(folder: RunFolder, own: str) -> str | None:
    """Return the exit policy that figures are of: the run's own, else the first by name; None when there are none."""
    names = {name.partition("__test-")[0] for name in _names(folder.path / "evals") if "__test-" in name}
    return own if own in names else min(names, default=None)


def is_locked(folder: Path) -> bool:
    """Return whether a process is at work in a folder, as far as its lock tells."""
    try:
        import fcntl

        handle = os.open(folder / ".lock", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except (ImportError, OSError):  # Windows; no lock: nobody
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def flat(config: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, str]:
    """Flatten a config to dotted option -> value; a group's choice stands before its options."""
    found = {group: str(choice) for group, choice in choices.items() if group not in ELSEWHERE}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if key in ELSEWHERE or str(name).startswith("_"):
                continue
            if isinstance(value, Mapping):
                walk(value, f"{key}.")
            else:
                found.setdefault(key, str(value))

    walk(config, "")
    return found


def differing(runs: Sequence[Listed]) -> list[dict[str, str]]:
    """Find, for each run, the settings in which it differs from others.

    An option is left out where all runs with the same choices of the groups in its name agree on it.
    """
    known = [run.settings for run in runs if run.settings]
    keys = [
        key for key in dict.fromkeys(key for one in known for key in one) if len({one.get(key) for one in known}) > 1
    ]
    groups = {group for run in runs for group in run.groups}

    def follows(key: str) -> bool:
        """Return whether the choices of the groups that are part of an option's name say what it is."""
        by = [part for part in key.split(".") if part in groups]
        choices = {tuple(one.get(group) for group in by) for one in known}
        return (
            "." in key
            and len(choices) > 1
            and len(choices) == len({(tuple(one.get(group) for group in by), one.get(key)) for one in known})
        )

    shown = [key for key in keys if not follows(key)]
    # an option that is another one's value says nothing new: defense.attack.eps is attack.eps is threat.eps
    own = [key for key in shown if not _echo(key, shown, known)]
    return [{key: run.settings[key] for key in own if key in run.settings} for run in runs]


def _echo(key: str, keys: Sequence[str], known: Sequence[Mapping[str, str]]) -> bool:
    """Return whether a deeper option has, in every run, the value of a shallower one of the same last name."""
    name, depth = key.rpartition(".")[2], key.count(".")
    first = keys.index(key)
    return any(
        other.rpartition(".")[2] == name
        and (other.count("."), index) < (depth, first)
        and all(one.get(key, one.get(other)) == one.get(other) for one in known)
        for index, other in enumerate(keys)
        if other != key and depth
    )
