"""Exit policies that are stored with a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rdi.config import build
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.records import Thresholds, read
from rdi.thresholds import Policy, ThresholdPolicy
from rdi.trust import trusted


def load_thresholds(run: str | Path, name: str | None = None, *, trust: Sequence[str] = ()) -> Policy:
    """Load an exit policy that is stored with a run.

    run: its folder.
    name: as `rdi evaluate threshold=NAME` or `save_thresholds` called it; None = the one of the run's training.
    trust: as for `load`.
    Raises UserError when there is none of that name.
    """
    with trusted(trust):
        return _load_thresholds(RunFolder(run), name)


def _load_thresholds(folder: RunFolder, name: str | None) -> Policy:
    manifest = folder.read_finished()
    path = folder.thresholds(name or manifest.choices["threshold"])
    if not path.is_file():
        stored = sorted(file.stem for file in path.parent.glob("*.json"))
        raise UserError(f"{folder.path} has no thresholds {path.stem!r}; stored: {', '.join(stored) or 'none'}")
    return policy(read(path, Thresholds))


def policy(record: Thresholds) -> Policy:
    """The policy that a record describes."""
    if record.policy is None:
        return ThresholdPolicy(build(record.rule["score"], "threshold.score"), record.values)
    built: Policy = build(record.policy, "policy")
    if tuple(built.values) != record.values:
        raise UserError(
            f"the thresholds {record.name} are damaged: values and policy differ; `rdi evaluate run=... "
            f"threshold=...` makes them again"
        )
    return built
