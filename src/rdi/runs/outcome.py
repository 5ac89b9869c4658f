"""The result that a job of a sweep hands back, how the jobs of a sweep rank by it, and what to type next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rdi.report import terminal
from rdi.threats import CLEAN

if TYPE_CHECKING:  # records take long to import
    from rdi.records import EvalRecord, WorstRecord

OBJECTIVES = ("clean_accuracy", "worst_accuracy", "mean_macs")
"""Objectives of `rdi run`, in this order: two fractions of the split judged, multiply-adds per image."""
FURTHER = {"certified": "certified %", "corrupted": "corrupted %"}
"""Accuracies that a job may have beside the objectives, with the headers of their columns."""
NEXT = {"train": "rdi attack -m run={runs}", "attack": "rdi evaluate -m run={runs}"}
"""Command -> what its jobs are for, where nothing was judged; {runs}: their folders."""
MOST = 20
"""Folders that a command to type next names; of more it names the first two and the last."""


class Outcome(tuple[float, ...]):
    """The OBJECTIVES of a job, as any Hydra sweeper reads them; empty where nothing was judged under attack.

    folder: the run folder. skipped: it was finished before, and nothing in it was made anew. split: the one that was
    judged. policy: name of the thresholds that it was judged by. beside: of FURTHER, the accuracies that the run has.
    Survives pickling.
    """

    folder: str
    skipped: bool
    split: str
    policy: str
    beside: dict[str, float]

    def __new__(
        cls,
        folder: str,
        skipped: bool,
        objectives: Sequence[float] = (),
        split: str = "test",
        policy: str = "",
        beside: Mapping[str, float] | None = None,
    ) -> Outcome:
        """objectives: as OBJECTIVES, or nothing."""
        made = super().__new__(cls, objectives)
        made.folder, made.skipped, made.split, made.policy = folder, skipped, split, policy
        made.beside = dict(beside or {})
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Return the arguments to unpickle from: a tuple would be made of its items alone."""
        return self.folder, self.skipped, tuple(self), self.split, self.policy, self.beside


def objectives(records: Sequence[EvalRecord], worst: WorstRecord | None) -> tuple[float, ...]:
    """Return the OBJECTIVES of the deployed policy; empty without clean images or without an attack."""
    clean = [record for record in records if record.attack == CLEAN]
    return (clean[0].accuracy, worst.accuracy, clean[0].mean_macs) if clean and worst is not None else ()


def ranking(words: Sequence[str], outcomes: Sequence[Any]) -> str | None:
    """Rank the jobs that were judged, by worst case, then clean accuracy, then cost; None with fewer than two.

    words: what tells each job from the others; outcomes: what each returned, an exception if it failed.
    """
    from rdi.report import tables

    found = [
        (outcome, said)
        for said, outcome in zip(words, outcomes, strict=True)
        if isinstance(outcome, Outcome) and outcome
    ]
    if len(found) < 2:
        return None
    found.sort(key=lambda one: (-one[0][1], -one[0][0], one[0][2]))
    splits = {outcome.split for outcome, _ in found}
    further = [key for key in FURTHER if any(key in outcome.beside for outcome, _ in found)]
    rows = [
        [
            str(place),
            said or outcome.folder,
            tables.percent(outcome[OBJECTIVES.index("worst_accuracy")]),
            *("-" if key not in outcome.beside else tables.percent(outcome.beside[key]) for key in further),
            tables.percent(outcome[OBJECTIVES.index("clean_accuracy")]),
            f"{outcome[OBJECTIVES.index('mean_macs')] / 1e6:.2f}",
            outcome.folder,
        ]
        for place, (outcome, said) in enumerate(found, 1)
    ]
    headers = ["", "job", "worst case %", *(FURTHER[key] for key in further), "clean %", "MACs (M)", "run"]
    said = f"the best first, by worst-case accuracy on {' and '.join(sorted(splits))} images:"
    return f"\n{said}\n\n{terminal.table(headers, rows, words=(0, 1, len(headers) - 1))}"


def following(command: str, outcomes: Sequence[Any], title: str) -> str | None:
    """Say what to type next: a front of what was judged on test images, else the next stage for what was made."""
    made = [one for one in outcomes if isinstance(one, Outcome)]
    judged = list(dict.fromkeys(one.folder for one in made if one and one.split == "test"))
    if len(judged) > 1:
        return f"rdi pareto 'runs=[{_listed(judged)}]' name={title}"
    if judged:
        return f"rdi report runs=[{judged[0]}]"
    folders = list(dict.fromkeys(one.folder for one in made))
    return NEXT[command].format(runs=_listed(folders)) if folders and command in NEXT else None


def _listed(folders: Sequence[str]) -> str:
    return ",".join(folders if len(folders) <= MOST else [*folders[:2], "...", folders[-1]])
