"""Functions for a notebook, a line each over Run: the network of a run, and its exit policies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rdi.config import describe
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.runs.evaluate import fit_thresholds
from rdi.runs.folder import Run
from rdi.thresholds import Calibration, Policy, Rule
from rdi.thresholds.policy import checked_policy
from rdi.trust import trusted

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def load(run: str | Path, device: str = "auto", *, trust: Sequence[str] = ()) -> MultiExitNet:
    """Load the network of a finished run, in eval mode.

    run: its folder.
    device: "auto" (CUDA where there is one), "cpu", "cuda", ...
    trust: modules whose classes and functions the run may name, for one that was made with backbones or exits of your
        own, as ["my_nets"]; a run folder can make nothing else run.
    Raises UserError if the run does not exist, is unfinished or damaged, or names anything else.
    """
    return Run.open(run, device, trust=trust).network


def load_thresholds(run: str | Path, name: str | None = None, *, trust: Sequence[str] = ()) -> Policy:
    """Load an exit policy that is stored with a finished run.

    run: its folder.
    name: as `rdi evaluate threshold=NAME` or `save_thresholds` called it; None = the one of the run's training.
    trust: as for `load`.
    Raises UserError when there is none of that name.
    """
    return Run.open(run, trust=trust).policy(name)


def save_thresholds(run: str | Path, name: str, thresholds: Rule | Policy, *, trust: Sequence[str] = ()) -> Policy:
    """Store an exit policy with a finished run, for `rdi evaluate run=RUN thresholds=NAME` and `load_thresholds`.

    run: its folder.
    name: what it is called from then on; letters, digits, `_`, `-` and `.`; older ones of this name are replaced.
    thresholds: a rule, which is fitted on the calibration banks of the run, or a policy, which is stored as it is.
    trust: as for `load`.
    Returns the policy. Raises UserError for a run that is missing or unfinished, a policy for another number of exits,
    a rule that cannot be fitted, and a bad name.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"thresholds are named with letters, digits, _, - and ., got {name!r}")
    opened = Run.open(run, trust=trust)
    manifest = opened.manifest
    rule = thresholds if isinstance(thresholds, Rule) else Given(thresholds)
    if isinstance(rule, Given):
        checked_policy(rule.policy, manifest.exits)
    rule.check(manifest.exits, manifest.costs)
    with trusted(trust), opened.folder.hold():
        fit_thresholds(opened, rule, name, describe(thresholds))
        return opened.policy(name)


class Given(Rule):
    """A policy as it is: nothing is fitted."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def fit(self, calibration: Calibration) -> Policy:
        """Return the policy as it is."""
        return self.policy
