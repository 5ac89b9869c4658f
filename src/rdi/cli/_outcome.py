"""The result that a job of a sweep hands back to the process that started the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rdi.records import EvalRecord, WorstRecord
from rdi.threats import CLEAN

OBJECTIVES = ("clean_accuracy", "worst_accuracy", "mean_macs")
"""What `rdi run` measures of a network, in this order: two fractions of the split judged, multiply-adds per image."""


class Outcome(tuple[float, ...]):
    """The OBJECTIVES of a job, as any Hydra sweeper reads them; empty where nothing was judged under attack.

    folder: the run folder. skipped: it was finished before, and nothing in it was made anew. split: the one that was
    judged. policy: name of the thresholds that it was judged by. Survives pickling.
    """

    folder: str
    skipped: bool
    split: str
    policy: str

    def __new__(
        cls, folder: str, skipped: bool, objectives: Sequence[float] = (), split: str = "test", policy: str = ""
    ) -> Outcome:
        """objectives: as OBJECTIVES, or nothing."""
        made = super().__new__(cls, objectives)
        made.folder, made.skipped, made.split, made.policy = folder, skipped, split, policy
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Return the arguments to unpickle from: a tuple would be made of its items alone."""
        return self.folder, self.skipped, tuple(self), self.split, self.policy


def objectives(records: Sequence[EvalRecord], worst: WorstRecord | None) -> tuple[float, ...]:
    """As OBJECTIVES, by the deployed policy; empty without clean images or without an attack."""
    clean = [record for record in records if record.attack == CLEAN]
    return (clean[0].accuracy, worst.accuracy, clean[0].mean_macs) if clean and worst is not None else ()
