"""The page of a search: what its trials left in their run folders, as one file that opens without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rdi.cli import report
from rdi.folders import RunFolder
from rdi.records import Manifest, WorstRecord, read
from rdi.report import searched
from rdi.report.searched import Entry
from rdi.searching import Search, Trial

FILES = ("trials.csv", "front.csv")


def write(out: Path, search: Search, volume: tuple[float | None, str], settings: Mapping[str, Any]) -> None:
    """Write index.html beside the tables in `out` and say where it is.

    volume, settings: see searched.sections. Raises UserError for a record that cannot be read.
    """
    entries = [entry(trial, out) for trial in search.trials()]
    files = [report.source(out / name, out) for name in FILES]
    lead = f"A search over {', '.join(search.distributions)}: {searched.conditions(entries)}."
    report.save(out, lead, searched.sections(entries, search.objectives, volume, settings, files))


def entry(trial: Trial, out: Path) -> Entry:
    """A trial with the records of its run, as far as they are still there."""
    folder = RunFolder(trial.run)
    if not trial.run or not folder.manifest.is_file():
        return Entry(trial, None, None)
    manifest = read(folder.manifest, Manifest)
    paths = sorted(folder.path.glob(f"evals/*__{trial.split}-worst.json"))
    judged = [(read(path, WorstRecord), path) for path in paths]
    # the run may have been judged by other policies since: the trial's is the one that says what the trial was told
    told = [one for one in judged if one[0].accuracy in (trial.values or ())] or judged
    worst = (told[0][0], report.source(told[0][1], out)) if told else None
    test = None
    if worst is not None and trial.test is not None:
        path = folder.evaluation(worst[0].threshold, "test", "worst")
        test = (read(path, WorstRecord), report.source(path, out)) if path.is_file() else None
    return Entry(trial, (manifest, report.source(folder.manifest, out)), worst, test)
