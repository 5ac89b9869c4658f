"""The page of a search: what its trials left in their run folders, as one file that opens without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rdi.cli._console import say
from rdi.folders import RunFolder
from rdi.records import EvalRecord, Manifest, WorstRecord, read
from rdi.report import searched
from rdi.report.searched import Entry
from rdi.report.views import Source
from rdi.runs import page
from rdi.searching import Search, Trial
from rdi.threats import CLEAN, strength

FILES = ("trials.csv", "front.csv")


def write(out: Path, search: Search, volume: tuple[float | None, str], settings: Mapping[str, Any]) -> None:
    """Write index.html beside the tables in `out` and say where it is.

    volume, settings: see searched.sections. Raises UserError for a record that cannot be read.
    """
    entries = [entry(trial, out) for trial in search.trials()]
    files = [page.source(out / name, out) for name in FILES]
    lead = f"A search over {', '.join(search.distributions)}: {searched.conditions(entries)}."
    say(page.save(out, lead, searched.sections(entries, search.objectives, volume, settings, files)))


def entry(trial: Trial, out: Path) -> Entry:
    """A trial with the records of its run, as far as they are still there."""
    folder = RunFolder(trial.run)
    if not trial.run or not folder.manifest.is_file():
        return Entry(trial, None, None)
    manifest = read(folder.manifest, Manifest)

    def judged(split: str) -> tuple[WorstRecord, Source] | None:
        path = folder.worst(trial.policy, split)
        return (read(path, WorstRecord), page.source(path, out)) if path.is_file() else None

    worst = judged(trial.split)
    made = () if worst is None else (CLEAN, *worst[0].attacks)
    paths = [folder.evaluation(trial.policy, trial.split, name) for name in made]
    settings = [read(path, EvalRecord).settings for path in paths if path.is_file()]
    test = None if trial.test is None else judged("test")
    return Entry(trial, (manifest, page.source(folder.manifest, out)), worst, test, strength(settings))
