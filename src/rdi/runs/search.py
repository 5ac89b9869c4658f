"""A search over settings: its trials as jobs, the front judged at the end, its tables, its files, its page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rdi import pareto, storage
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.records import EvalRecord, Manifest, WorstRecord, read
from rdi.report import plots, searched, tables, terminal
from rdi.report.searched import WORDS, Entry, chosen_on, figures, headings, shown
from rdi.report.views import Source
from rdi.runs import page
from rdi.runs.outcome import OBJECTIVES, Outcome
from rdi.searching import COMPLETE, FAILED, KILLED, Choices, Search, Space, Trial
from rdi.threats import CLEAN, strength
from rdi.tracking import Wandb

logger = logging.getLogger("rdi")
MACHINE = ("device", "threads", "ranks", "trust", "tracking", "overwrite", "sweep", "data.root", "data.download")
"""Options that may change between two calls of one search: they change no value."""
Launch = Callable[[Sequence[Sequence[str]], int], Sequence[Any]]
"""Runs jobs, given as overrides, the first of which has this number; the Outcome of each, or in words why it failed."""
FILES = ("trials.csv", "front.csv")


def lasting(fixed: Sequence[str]) -> list[str]:
    """Return the fixed options that a search must go on with; not those of the machine and of Hydra."""
    kept = []
    for word in fixed:
        key = word.lstrip("+~").partition("=")[0].replace("/", ".")
        if not any(key == name or key.startswith(f"{name}.") for name in (*MACHINE, "hydra")):
            kept.append(word)
    return sorted(kept)


def example(space: Space) -> list[str]:
    """Return one point of the space as overrides, to check that the options exist."""
    point = {key: item.options[0] if isinstance(item, Choices) else item.low for key, item in space.items()}
    return words(point)


def words(point: Mapping[str, Any]) -> list[str]:
    """Return a point of the space as overrides."""
    return [f"{key}={value}" for key, value in point.items()]


def go_on(
    search: Search, name: str, out: Path, fixed: Sequence[str], trials: int, at_once: int, launch: Launch
) -> list[Trial]:
    """Ask, run and tell until `trials` trials have ended, those of earlier calls included; the trials so far.

    at_once: trials proposed and launched together. The files in `out` are written anew after each such batch.
    """
    again, before = search.recover(), search.ended()
    if before or again:
        lost = f", {again} that a killed process left are run again" if again else ""
        logger.info("search %s goes on: %d of %d trials are done%s", name, before, trials, lost)
    while (left := trials - search.ended()) > 0:
        asked = [search.ask() for _ in range(min(at_once, left))]
        for number, point in asked:
            logger.info("trial %d: %s", number, " ".join(words(point)))
        jobs = [[*fixed, *words(point)] for _, point in asked]
        for (number, _), outcome in zip(asked, launch(jobs, asked[0][0]), strict=True):
            tell(search, number, outcome)
        write(out, search)
    return search.trials()


def judge(search: Search, fixed: Sequence[str], at_once: int, launch: Launch) -> None:
    """Judge the front on the test images, unless it was chosen by them; those that were judged before are left alone.

    A job of each trial's options with split=test, which finds the network trained; `at_once` are launched together.
    """
    left = [trial for trial in search.trials() if trial.on_front and trial.split != "test" and trial.test is None]
    if left:
        logger.info("the front is judged on the test images now: %d to do", len(left))
    first = len(search.trials())
    for begin in range(0, len(left), at_once):
        some = left[begin : begin + at_once]
        jobs = [[*fixed, *words(trial.params), "split=test"] for trial in some]
        for trial, outcome in zip(some, launch(jobs, first + begin), strict=True):
            if isinstance(outcome, Outcome) and outcome:
                search.judged(trial.number, values_of(search, outcome))
            else:
                logger.error("trial %d was not judged on the test images: %s", trial.number, outcome)


def values_of(search: Search, outcome: Outcome) -> tuple[float, ...]:
    """Return the objectives of the search out of what a job measured."""
    measured = dict(zip(OBJECTIVES, outcome, strict=True))
    return tuple(measured[name] for name in search.objectives)


def tell(search: Search, number: int, outcome: Any) -> None:
    """Hand the search what became of a trial's job, as Launch says it."""
    if isinstance(outcome, str):
        search.fail(number, outcome)
        return
    if not isinstance(outcome, Outcome) or not outcome:
        search.fail(
            number,
            "nothing was judged under attack: search with `rdi run`, the stages train, attack and evaluate, and a "
            "suite that holds an attack",
        )
        return
    measured = dict(zip(OBJECTIVES, outcome, strict=True))
    search.tell(number, values_of(search, outcome), outcome.folder, outcome.split, outcome.policy)
    line = ", ".join(f"{column} {shown(key, measured[key])}" for key, column in WORDS.items())
    logger.info("trial %d: %s", number, line)


def write(out: Path, search: Search) -> None:
    """Write trials.csv, every trial that ended, and front.csv, those that no other one dominates."""
    rows = [row(trial, search.objectives) for trial in search.trials()]
    front = [kept for kept in rows if kept["on_front"]]
    for file, content in (("trials.csv", rows), ("front.csv", front)):
        storage.write_bytes(out / file, tables.comma_separated(content).encode() if content else b"")


def row(trial: Trial, objectives: Mapping[str, str]) -> dict[str, Any]:
    """Return a line of trials.csv: fractions and multiply-adds, empty where the trial is not complete."""
    nothing = [None] * len(objectives)
    return {
        "trial": trial.number,
        "state": trial.state,
        "split": trial.split if trial.values else None,
        **dict(zip(objectives, trial.values or nothing, strict=True)),
        **{f"test_{name}": value for name, value in zip(objectives, trial.on_test or nothing, strict=True)},
        "on_front": trial.on_front,
        **trial.params,
        "run": trial.run,
        "seconds": None if trial.seconds is None else round(trial.seconds, 1),
        "reason": trial.reason,
    }


def conclude(search: Search, name: str, out: Path, tracking: Wandb, config: Mapping[str, Any]) -> str:
    """Write files and page, send the front to the tracker; front and files in words.

    Raises UserError when no trial is complete.
    """
    trials = search.trials()
    write(out, search)
    counts = {state: sum(trial.state == state for trial in trials) for state in (COMPLETE, FAILED, KILLED)}
    failed = [trial for trial in trials if trial.state == FAILED]
    for trial in failed:
        logger.info("trial %d failed: %s", trial.number, trial.reason)
    if not counts[COMPLETE]:
        raise UserError(
            f"no trial of the search {name} is complete, the last one failed: {failed[-1].reason}; mend that, then "
            f"delete {out} and start again"
            if failed
            else f"the search {name} has no trials: give hydra.sweeper.n_trials=..."
        )
    front = sorted((trial for trial in trials if trial.on_front), key=lambda trial: trial.values or ())
    ended = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    goals = ", ".join(f"{key} {'up' if goal == 'maximize' else 'down'}" for key, goal in search.objectives.items())
    keys = list(search.distributions)
    table = [
        [
            str(trial.number),
            *figures(trial, search.objectives),
            *(tables.plain(trial.params[key]) for key in keys),
            trial.run,
        ]
        for trial in front
    ]
    heads = ["trial", *headings(front, search.objectives), *keys, "run"]
    volume, corner = hypervolume(trials, search.objectives)
    lines = [
        f"\nsearch {name}: {ended}; {len(front)} on the front ({goals})",
        terminal.table(heads, table, words=(0, len(heads) - 1)),
        chosen_on(front),
        *([] if volume is None else [f"hypervolume {volume:.4f} of the box from {corner} to the best conceivable"]),
        f"\ntrials:  {out / 'trials.csv'}\nfront:   {out / 'front.csv'}",
        write_page(out, search, (volume, corner), config),
    ]
    complete = [row(trial, search.objectives) for trial in trials if trial.state == COMPLETE]
    columns = [key for key in complete[0] if key not in ("state", "reason")]
    values = [[one[key] for key in columns] for one in complete]
    with tracking.start(out, "search", config) as log:
        log.table("trials", columns, values)
        log.table("front", columns, [line for line, one in zip(values, complete, strict=True) if one["on_front"]])
        for x, y in plots.PAIRS:
            if {x, y} <= set(search.objectives):
                log.scatter(f"{y} against {x}", columns, values, x=x, y=y)
        log.summary(
            {"trials": len(trials), "trials_on_front": len(front)}
            | {state: count for state, count in counts.items()}
            | ({} if volume is None else {"hypervolume": volume})
        )
    return "\n".join(lines)


def write_page(out: Path, search: Search, volume: tuple[float | None, str], settings: Mapping[str, Any]) -> str:
    """Write index.html beside the tables in `out`; where it is, in words.

    volume, settings: as searched.sections takes them. Raises UserError for a record that cannot be read.
    """
    entries = [entry(trial, out) for trial in search.trials()]
    files = [page.source(out / name, out) for name in FILES]
    lead = f"A search over {', '.join(search.distributions)}: {searched.conditions(entries)}."
    return page.save(out, lead, searched.sections(entries, search.objectives, volume, settings, files))


def entry(trial: Trial, out: Path) -> Entry:
    """Return a trial with the records of its run, as far as they are still there."""
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


def hypervolume(trials: Sequence[Trial], objectives: Mapping[str, str]) -> tuple[float | None, str]:
    """Share of the box of values that some trial dominates, and the box's worst corner in words.

    The corner: accuracies of 0 and the cost of the costliest network when every image goes to its end, which no
    policy exceeds. None for one objective, and when a run folder with that cost is gone.
    """
    complete = [trial for trial in trials if trial.values is not None]
    if len(objectives) not in (2, 3):
        return None, ""
    worst, best, said = [], [], []
    for name in objectives:
        if name == "mean_macs":
            manifests = [RunFolder(trial.run).manifest for trial in complete]
            if not all(path.is_file() for path in manifests):
                return None, ""
            most = max(read(path, Manifest).costs.macs[-1] for path in manifests)
            worst.append(float(most))
            best.append(0.0)
            said.append(f"{most / 1e6:.2f} M MACs")
        else:
            worst.append(0.0)
            best.append(1.0)
            said.append(f"0 % {WORDS[name].removesuffix(' %')}")
    points = np.array([trial.values for trial in complete], dtype=float)
    up = tuple(direction == "maximize" for direction in objectives.values())
    box = float(np.prod([abs(high - low) for high, low in zip(best, worst, strict=True)]))
    return pareto.hypervolume(points, up, worst) / box, ", ".join(said)
