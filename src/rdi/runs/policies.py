"""Exit policies that are stored with a run."""

from __future__ import annotations

from typing import Any

from rdi.config import build
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.records import Manifest, RuleNode, Thresholds, read
from rdi.text import is_visible
from rdi.thresholds import Policy, ThresholdPolicy


def names(folder: RunFolder) -> list[str]:
    """Return the names of the thresholds of a run, sorted."""
    return sorted(file.stem for file in folder.thresholds("x").parent.glob("*.json") if is_visible(file.stem))


def read_thresholds(folder: RunFolder, name: str) -> Thresholds:
    """Read the record of the thresholds `name`. Raises UserError when there is none."""
    path = folder.thresholds(name)
    if not path.is_file():
        stored = ", ".join(names(folder)) or "none"
        raise UserError(
            f"{folder.path} has no thresholds {path.stem!r}; stored: {stored}; "
            f"`rdi evaluate run={folder.path}` fits the run's own, with threshold=... others"
        )
    found = read(path, Thresholds)
    if found.name != name:
        raise UserError(f"{path} holds the thresholds {found.name}: rename it to that, or move it away")
    return found


def load_policy(folder: RunFolder, name: str, manifest: Manifest) -> Policy:
    """Load the policy called `name`. Raises UserError when there is none, or it is damaged or of other weights."""
    found = read_thresholds(folder, name)
    if found.checkpoint_sha256 != manifest.checkpoint_sha256:
        own = name == manifest.choices.get("threshold")
        raise UserError(
            f"{folder.thresholds(name)} is of other weights: fit it again with `rdi evaluate run={folder.path}"
            + ("`" if own else f" threshold={name.partition('-')[0]}` and its options, or delete it")
        )
    return policy(found)


def policy(record: Thresholds) -> Policy:
    """Build the policy that a record describes."""
    if record.policy is None:
        if "score" not in record.rule:
            raise UserError(
                f"the thresholds {record.name} are damaged: there is no policy; `rdi evaluate run=... threshold=...` "
                "makes them again"
            )
        return ThresholdPolicy(_built(record, record.rule["score"], "threshold.score"), record.values)
    built: Policy = _built(record, record.policy, "policy")
    if tuple(built.values) != record.values:
        raise UserError(
            f"the thresholds {record.name} are damaged: values and policy differ; `rdi evaluate run=... "
            f"threshold=...` makes them again"
        )
    return built


def _built(record: Thresholds, node: RuleNode, name: str) -> Any:
    """Build a part of a policy. Raises UserError, with the name of the thresholds, for what no policy holds."""
    try:
        return build(node, name)
    except UserError as error:
        raise UserError(f"the thresholds {record.name}: {error}") from None
