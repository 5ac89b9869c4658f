"""A search on the command line: its space out of overrides, its trials as jobs, its tables, its files, its chart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.utils import JobReturn, JobStatus

from rdi import pareto, records, storage
from rdi.cli import _search_page
from rdi.cli._console import say
from rdi.cli._sweeps import reason
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.report import plots, tables, terminal
from rdi.report.searched import WORDS, chosen_on, figures, headings, shown
from rdi.runs.outcome import OBJECTIVES, Outcome
from rdi.searching import COMPLETE, FAILED, KILLED, Choices, Interval, Search, Space, Trial
from rdi.tracking import Wandb

logger = logging.getLogger("rdi")
MACHINE = ("device", "threads", "trust", "tracking", "overwrite", "sweep", "data.root", "data.download")
"""Options that may change between two calls of one search: they change no value."""
Launch = Callable[[Sequence[Sequence[str]], int], Sequence[JobReturn]]
"""Runs jobs, given as overrides, the first of which has this number."""


def split(overrides: Sequence[Override]) -> tuple[dict[str, Choices | Interval], list[str]]:
    """The space that the overrides with several values span, and the others as they were typed.

    The last of several overrides of one option counts. Raises UserError for an empty range.
    """
    space: dict[str, Choices | Interval] = {}
    fixed: dict[str, str] = {}
    for override in overrides:
        key = override.get_key_element()
        space.pop(key, None)
        fixed.pop(key, None)
        if override.is_sweep_override():
            space[key] = values(override)
        else:
            fixed[key] = str(override.input_line)
    return space, list(fixed.values())


def values(override: Override) -> Choices | Interval:
    """Return what an override lets an option be: interval(low,high), range(low,high,step), or a list of choices."""
    sweep: Any = override.value()
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None, "the grammar asks for both ends"
        assert sweep.end is not None, "the grammar asks for both ends"
        whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
        return Interval(sweep.start, sweep.end, log="log" in sweep.tags, whole=whole)
    if override.is_range_sweep():
        numbers: list[Any] = list(override.sweep_iterator())
        if not numbers:
            raise UserError(f"{override.input_line} is empty")
        return Interval(
            numbers[0], numbers[-1], step=sweep.step, log="log" in sweep.tags, whole=all(map(_whole, numbers))
        )
    return Choices(tuple(override.sweep_string_iterator()))


def _whole(value: object) -> bool:
    return isinstance(value, int)


def lasting(fixed: Sequence[str]) -> list[str]:
    """The fixed options that a search must go on with; not those of the machine and of Hydra."""
    kept = []
    for word in fixed:
        key = word.lstrip("+~").partition("=")[0].replace("/", ".")
        if not any(key == name or key.startswith(f"{name}.") for name in (*MACHINE, "hydra")):
            kept.append(word)
    return sorted(kept)


def example(space: Space) -> list[str]:
    """One point of the space as overrides, to see that the options exist."""
    point = {key: item.options[0] if isinstance(item, Choices) else item.low for key, item in space.items()}
    return words(point)


def words(point: Mapping[str, Any]) -> list[str]:
    """A point of the space as overrides."""
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
        for (number, _), result in zip(asked, launch(jobs, asked[0][0]), strict=True):
            tell(search, number, result)
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
        for trial, result in zip(some, launch(jobs, first + begin), strict=True):
            outcome = result._return_value
            if result.status == JobStatus.COMPLETED and isinstance(outcome, Outcome) and outcome:
                search.judged(trial.number, told(search, outcome))
            else:
                logger.error("trial %d was not judged on the test images: %s", trial.number, reason(outcome))


def told(search: Search, outcome: Outcome) -> tuple[float, ...]:
    """The objectives of the search out of what a job measured."""
    measured = dict(zip(OBJECTIVES, outcome, strict=True))
    return tuple(measured[name] for name in search.objectives)


def tell(search: Search, number: int, result: JobReturn) -> None:
    """Hand the search what became of a trial's job."""
    outcome = result._return_value
    if result.status != JobStatus.COMPLETED:
        search.fail(number, reason(outcome))
        return
    if not isinstance(outcome, Outcome) or not outcome:
        search.fail(
            number,
            "nothing was judged under attack: search with `rdi run`, the stages train, attack and evaluate, and a "
            "suite that holds an attack",
        )
        return
    measured = dict(zip(OBJECTIVES, outcome, strict=True))
    search.tell(number, told(search, outcome), outcome.folder, outcome.split, outcome.policy)
    line = ", ".join(f"{column} {shown(key, measured[key])}" for key, column in WORDS.items())
    logger.info("trial %d: %s", number, line)


def write(out: Path, search: Search) -> None:
    """trials.csv, every trial that ended, and front.csv, those that no other one dominates."""
    rows = [row(trial, search.objectives) for trial in search.trials()]
    front = [kept for kept in rows if kept["on_front"]]
    for file, content in (("trials.csv", rows), ("front.csv", front)):
        storage.write_bytes(out / file, tables.comma_separated(content).encode() if content else b"")


def row(trial: Trial, objectives: Mapping[str, str]) -> dict[str, Any]:
    """A line of trials.csv: fractions and multiply-adds, empty where the trial is not complete."""
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


def conclude(search: Search, name: str, out: Path, tracking: Wandb, config: Mapping[str, Any]) -> None:
    """Print the front, write files and page, send it to the tracker. Raises UserError when no trial is complete."""
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
    goals = ", ".join(f"{key} {'up' if way == 'maximize' else 'down'}" for key, way in search.objectives.items())
    say(f"\nsearch {name}: {ended}; {len(front)} on the front ({goals})")
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
    say(
        terminal.table(
            ["trial", *headings(front, search.objectives), *keys, "run"],
            table,
            words=(0, 1 + len(headings(front, search.objectives)) + len(keys)),
        )
    )
    say(chosen_on(front))
    volume, corner = hypervolume(trials, search.objectives)
    if volume is not None:
        say(f"hypervolume {volume:.4f} of the box from {corner} to the best conceivable")
    say(f"\ntrials:  {out / 'trials.csv'}\nfront:   {out / 'front.csv'}")
    _search_page.write(out, search, (volume, corner), config)
    complete = [row(trial, search.objectives) for trial in trials if trial.state == COMPLETE]
    columns = [key for key in complete[0] if key not in ("state", "reason")]
    lines = [[one[key] for key in columns] for one in complete]
    with tracking.start(out, "search", config) as log:
        log.table("trials", columns, lines)
        log.table("front", columns, [line for line, one in zip(lines, complete, strict=True) if one["on_front"]])
        for x, y in plots.PAIRS:
            if {x, y} <= set(search.objectives):
                log.scatter(f"{y} against {x}", columns, lines, x=x, y=y)
        log.summary(
            {"trials": len(trials), "trials_on_front": len(front)}
            | {state: count for state, count in counts.items()}
            | ({} if volume is None else {"hypervolume": volume})
        )


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
            most = max(records.read(path, records.Manifest).costs.macs[-1] for path in manifests)
            worst.append(float(most))
            best.append(0.0)
            said.append(f"{most / 1e6:.2f} M MACs")
        else:
            worst.append(0.0)
            best.append(1.0)
            said.append(f"0 % {WORDS[name].removesuffix(' %')}")
    points = np.array([trial.values for trial in complete], dtype=float)
    up = tuple(way == "maximize" for way in objectives.values())
    box = float(np.prod([abs(high - low) for high, low in zip(best, worst, strict=True)]))
    return pareto.hypervolume(points, up, worst) / box, ", ".join(said)
