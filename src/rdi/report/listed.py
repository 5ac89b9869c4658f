"""Tables of runs: which there are, in which state, what sets them apart, and their headline figures."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rdi.listing import BEGUN, DAMAGED, JUDGED, NO_RUN, STATES, Listed, differing
from rdi.report import tables, terminal
from rdi.text import visible

SORTS = ("name", "state", "ended", "clean", "worst", "certified", "corrupted", "saved")
FIGURES = {
    "clean": "clean %",
    "worst": "worst %",
    "certified": "certified %",
    "corrupted": "corrupted %",
    "saved": "saved %",
}
RARE = ("certified", "corrupted")
"""Figures of FIGURES that few runs have: shown where one has."""
"""Headline figures of a run -> headers."""


def ordered(runs: Sequence[Listed], by: str) -> list[Listed]:
    """Sort names as people do; the latest, or the largest figure, first."""
    named = sorted(runs, key=lambda run: _natural(str(run.path)))
    if by == "name":
        return named
    if by == "state":
        return sorted(named, key=lambda run: STATES.index(run.state))
    if by == "ended":
        return sorted(named, key=lambda run: run.ended, reverse=True)
    return sorted(named, key=lambda run: -1.0 if (value := getattr(run, by)) is None else value, reverse=True)


def _natural(text: str) -> list[tuple[int, str]]:
    """seed2 before seed10."""
    parts, digits = [], ""
    for letter in text + "\0":
        if letter.isascii() and letter.isdigit():
            digits += letter
            continue
        if digits:
            parts.append((int(digits[:300]), ""))
            digits = ""
        parts.append((10**301, letter))
    return parts


def rows(runs: Sequence[Listed]) -> list[dict[str, Any]]:
    """Return a row per run, fractions as they are; one column per setting that differs."""
    settings = differing(runs)
    keys = list(dict.fromkeys(key for one in settings for key in one))
    return [
        {
            "run": visible(str(run.path)),
            "state": run.state,
            "clean_accuracy": run.clean,
            "worst_accuracy": run.worst,
            "certified_accuracy": run.certified,
            "corrupted_accuracy": run.corrupted,
            "saved": run.saved,
            "ended": run.ended,
            "why": run.why,
            **{key: mine.get(key, "") for key in keys},
        }
        for run, mine in zip(runs, settings, strict=True)
    ]


def table(runs: Sequence[Listed]) -> list[str]:
    """Render the lines of the table, at most 80 letters each, and below it what to do next."""
    settings = differing(runs)
    home = (
        os.path.commonpath([run.path.parent for run in runs])
        if len({run.path.is_absolute() for run in runs}) == 1
        else ""
    )
    columns = [name for name in FIGURES if name not in RARE or any(getattr(run, name) is not None for run in runs)]
    body = []
    for run, mine in zip(runs, settings, strict=True):
        name = os.path.relpath(run.path, home) if home else str(run.path)
        values = [getattr(run, name) for name in columns]
        figures = ["-" if value is None else tables.percent(value) for value in values]
        said = run.why or " ".join(f"{key}={value}" for key, value in mine.items())
        body.append([name, run.state, *figures, said])
    headers = ["run", "state", *(FIGURES[name] for name in columns), "what differs"]
    notes: list[str] = []
    if not terminal.fits(headers, body):
        # beside the figures there is no room to read it
        notes, headers, body = [row[-1] for row in body], headers[:-1], [row[:-1] for row in body]
    counts = Counter(run.state for run in runs)
    known = [run for run in runs if run.settings]
    shared = [f"{key}={known[0].settings[key]}" for key in ("backbone", "data") if known and _shared(known, key)]
    lines = [
        f"{len(runs)} in {home or '.'}: {', '.join(f'{counts[state]} {state}' for state in STATES if counts[state])}"
        + (f"; all {' '.join(shared)}" if shared else ""),
        *(["below each run: what differs"] if any(notes) else []),
        "",
        terminal.table(headers, body, words=(0, 1, 2 + len(columns)), notes=notes),
    ]
    lines += [f"\n{line}" if not index else line for index, line in enumerate(hints(runs))]
    return [line for line in "\n".join(lines).splitlines()]


def _shared(runs: Sequence[Listed], key: str) -> bool:
    return len({run.settings.get(key) for run in runs}) == 1 and key in runs[0].settings


def hints(runs: Sequence[Listed]) -> list[str]:
    """Say what to type next, for the states that ask for something."""
    first = {run.state: _typed(run.path) for run in reversed(runs)}
    found = []
    if BEGUN in first:
        found.append(f"begun: rdi train run={first[BEGUN]} goes on")
    if DAMAGED in first:
        found.append("damaged: restore it, or train it again with overwrite=true")
    if NO_RUN in first:
        found.append(f"no run: rdi list 'runs=[{first[NO_RUN]}/*]' looks below it")
    judged = [run for run in runs if run.state == JUDGED]
    if len(judged) > 1:
        found.append("to compare: rdi pareto 'runs=[NAME,NAME]' name=comparison")
    elif judged:
        found.append(f"its page: rdi report runs=[{first[JUDGED]}]")
    return found


def _typed(path: Path) -> str:
    """A path as part of a command, or NAME where it would need quotes or much room."""
    return str(path) if re.fullmatch(r"[\w./-]{1,40}", str(path), re.ASCII) else "NAME"
