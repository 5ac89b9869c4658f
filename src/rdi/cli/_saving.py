"""Thresholds from Python: fitted or given, stored where every command and `load_thresholds` reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rdi.config import describe
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.runs.evaluate import fit_thresholds
from rdi.runs.policies import load_thresholds
from rdi.thresholds import Calibration, Policy, Rule
from rdi.trust import trusted

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def save_thresholds(run: str | Path, name: str, thresholds: Rule | Policy, *, trust: Sequence[str] = ()) -> Policy:
    """Store an exit policy with a finished run, for `rdi evaluate run=RUN thresholds=NAME` and `load_thresholds`.

    run: its folder.
    name: what it is called from then on; letters, digits, `_`, `-` and `.`; older ones of this name are replaced.
    thresholds: a rule, which is fitted on the calibration banks of the run, or a policy, which is stored as it is.
    trust: as for `load`.
    Returns the policy. Raises UserError for a run that is missing or unfinished, a policy for another number of exits,
    a rule that cannot be fitted, and a bad name.
    """
    folder = RunFolder(run)
    if not NAME.fullmatch(name):
        raise UserError(f"thresholds are named with letters, digits, _, - and ., got {name!r}")
    with trusted(trust):
        manifest = folder.read_finished()
        rule = thresholds if isinstance(thresholds, Rule) else Given(thresholds)
        if isinstance(rule, Given) and rule.policy.exits != manifest.exits:
            raise UserError(f"these thresholds are for {rule.policy.exits} exits, the network has {manifest.exits}")
        rule.check(manifest.exits, manifest.costs)
        with folder.hold():
            fit_thresholds(folder, rule, name, describe(thresholds))
            return load_thresholds(run, name, trust=trust)


class Given(Rule):
    """A policy as it is: nothing is fitted."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def fit(self, calibration: Calibration) -> Policy:
        """See Rule."""
        return self.policy
