"""Rank the jobs of a multirun: the best first, and the command to type next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from rdi.cli._outcome import OBJECTIVES, Outcome
from rdi.cli._sweeps import varied
from rdi.report import tables, terminal

NEXT = {
    "train": "rdi attack -m run={runs}",
    "attack": "rdi evaluate -m run={runs}",
}
"""Command -> what its jobs are for, where nothing was judged; {runs}: their folders."""


def ranking(jobs: Sequence[Sequence[str]], results: Sequence[JobReturn]) -> str | None:
    """The jobs that were judged, by worst case, then clean accuracy, then cost; None with fewer than two of them.

    jobs: the overrides of each.
    """
    found: list[tuple[Outcome, str]] = [
        (result._return_value, words)
        for words, result in zip(varied(jobs), results, strict=True)
        if result.status == JobStatus.COMPLETED and isinstance(result._return_value, Outcome) and result._return_value
    ]
    if len(found) < 2:
        return None
    found.sort(key=lambda one: (-one[0][1], -one[0][0], one[0][2]))
    splits = {outcome.split for outcome, _ in found}
    rows = [
        [
            str(place),
            words or outcome.folder,
            tables.percent(outcome[OBJECTIVES.index("worst_accuracy")]),
            tables.percent(outcome[OBJECTIVES.index("clean_accuracy")]),
            f"{outcome[OBJECTIVES.index('mean_macs')] / 1e6:.2f}",
            outcome.folder,
        ]
        for place, (outcome, words) in enumerate(found, 1)
    ]
    headers = ["", "job", "worst case %", "clean %", "MACs (M)", "run"]
    said = f"the best first, by worst-case accuracy on {' and '.join(sorted(splits))} images:"
    return f"\n{said}\n\n{terminal.table(headers, rows, words=(0, 1, 5))}"


def following(command: str, outcomes: Sequence[Any], title: str) -> str | None:
    """Say what to type next: a front of what was judged on test images, else the next stage for what was made."""
    made = [one for one in outcomes if isinstance(one, Outcome)]
    judged = list(dict.fromkeys(one.folder for one in made if one and one.split == "test"))
    if len(judged) > 1:
        return f"rdi pareto 'runs=[{','.join(judged)}]' name={title}"
    if judged:
        return f"rdi report runs=[{judged[0]}]"
    folders = list(dict.fromkeys(one.folder for one in made))
    return NEXT[command].format(runs=",".join(folders)) if folders and command in NEXT else None
