"""Arrange the trials of a search and their front as the sections of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rdi.records import Manifest, WorstRecord
from rdi.report import plots, provenance, svg, tables
from rdi.report.page import Cell, Facts, Panel, Pictures, Section, Table
from rdi.report.views import Source
from rdi.searching import COMPLETE, FAILED, KILLED, Trial

WORDS = {"clean_accuracy": "clean %", "worst_accuracy": "worst case %", "mean_macs": "MACs (M)"}
"""Objective -> header of its column, with the unit."""
CHOSEN_ON_TEST = (
    "accuracies are of the test images, and the front was chosen by them: it is optimistic. Judge what you choose "
    "with other seeds before you report it."
)

CHOSEN_ELSEWHERE = (
    "the search looked at {split} images alone, held out of training; the test columns were measured afterwards, for "
    "the front only, and chose nothing. To choose within the front by them would be a choice on the test images."
)


@dataclass(frozen=True)
class Entry:
    """A trial with what is left of its run: manifest and worst-case records, each with the file; None where gone.

    worst: of the split that the search looked at.
    test: of the test images, where those are others.
    strength: of the attacks that were judged, in words.
    """

    trial: Trial
    manifest: tuple[Manifest, Source] | None
    worst: tuple[WorstRecord, Source] | None
    test: tuple[WorstRecord, Source] | None = None
    strength: str = ""

    def measured(self, objectives: Mapping[str, str]) -> dict[str, float]:
        """Return objective -> value, empty unless the trial is complete."""
        return dict(zip(objectives, self.trial.values or (), strict=self.trial.values is not None))


def shown(objective: str, value: float) -> str:
    """Format a value in the unit of its column."""
    return f"{value / 1e6:.2f}" if objective == "mean_macs" else tables.percent(value)


def chosen_on(front: Sequence[Trial]) -> str:
    """Say which images chose the front, and what that means for its figures."""
    other = _other_split(front)
    return CHOSEN_ELSEWHERE.format(split=other) if other else CHOSEN_ON_TEST


def headings(front: Sequence[Trial], objectives: Mapping[str, str]) -> list[str]:
    """Return the headers of the columns that `figures` fills for each of these trials."""
    other = _other_split(front)
    if not other:
        return [WORDS[name] for name in objectives]
    return [f"{split}: {WORDS[name]}" for split in (other, "test") for name in objectives]


def figures(trial: Trial, objectives: Mapping[str, str]) -> list[str]:
    """Say what a complete trial was chosen by and, where that is something else, what it reaches on test images."""
    columns = [trial.values] if trial.split == "test" else [trial.values, trial.test]
    blank = (None,) * len(objectives)
    return [
        "-" if value is None else shown(name, value)
        for values in columns
        for name, value in zip(objectives, values or blank, strict=True)
    ]


def _other_split(trials: Sequence[Trial]) -> str:
    """The split that the search looked at, unless it is the test split."""
    return next((trial.split for trial in trials if trial.split != "test"), "")


def sections(
    entries: Sequence[Entry],
    objectives: Mapping[str, str],
    volume: tuple[float | None, str],
    settings: Mapping[str, Any],
    files: Sequence[Source],
) -> list[Section]:
    """Arrange all sections of the page.

    entries: every trial that ended.
    objectives: name -> direction.
    volume: share of the box that the trials dominate, None if it is unknown, and the box's worst corner in words.
    settings: what was searched and how.
    files: the search's own.
    """
    return [
        Section("search", "Search", "", [_facts(entries, volume), _front(entries, objectives)]),
        Section(
            "fronts",
            "Fronts",
            "Every dot is a trial: a network that was trained, attacked and judged. A trial is dominated when another "
            "is at least as good in all objectives and better in one.",
            _pictures(entries, objectives),
        ),
        Section("trials", "Trials", "", [_trials(entries, objectives)]),
        Section(
            "provenance",
            "Provenance",
            "Where every figure on this page comes from. Links lead to the records, relative to this file.",
            [_settings(settings), _runs(entries), _files(entries, files)],
        ),
    ]


def conditions(entries: Sequence[Entry]) -> str:
    """Name data, threat model, strength and number of images of the complete trials."""
    found = []
    for entry in entries:
        if entry.manifest is None or entry.worst is None:
            continue
        manifest, worst = entry.manifest[0], entry.worst[0]
        found.append(
            f"{manifest.backbone} on {manifest.data.name}, {manifest.data.samples[worst.split]:,} clean "
            f"{worst.split} images, worst of {', '.join(worst.attacks)} on {worst.samples:,}, {entry.strength}, "
            f"seed {manifest.seed}"
        )
    return "; ".join(dict.fromkeys(found)) or "The run folders of the trials are gone"


def _facts(entries: Sequence[Entry], volume: tuple[float | None, str]) -> Facts:
    counts = {state: sum(entry.trial.state == state for entry in entries) for state in (COMPLETE, FAILED, KILLED)}
    ended = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    front = sum(entry.trial.on_front for entry in entries)
    facts = [("Trials", str(len(entries)), ended), ("On the front", str(front), f"of {counts[COMPLETE]} complete ones")]
    share, corner = volume
    if share is not None:
        facts.append(("Hypervolume", f"{tables.percent(share)} %", f"of the box from {corner} to the best conceivable"))
    return Facts(facts)


def _front(entries: Sequence[Entry], objectives: Mapping[str, str]) -> Table:
    front = sorted((entry for entry in entries if entry.trial.on_front), key=lambda entry: entry.trial.values or ())
    runs = ",".join(entry.trial.run for entry in front)
    goals = ", ".join(
        f"{WORDS[name]} {'up' if direction == 'maximize' else 'down'}" for name, direction in objectives.items()
    )
    params = _params(entries)
    trials = [entry.trial for entry in front]
    both = bool(_other_split(trials))
    return Table(
        "The front",
        f"{conditions(entries)}. Objectives: {goals}. Cost: mean per clean image, every head on the way counted.",
        ["trial", *headings(trials, objectives), *params, "record", *(["test record"] if both else [])],
        [
            [
                str(entry.trial.number),
                *figures(entry.trial, objectives),
                *(tables.plain(entry.trial.params[name]) for name in params),
                _record(entry.worst),
                *([_record(entry.test)] if both else []),
            ]
            for entry in front
        ],
        notes=[
            f"{chosen_on(trials)[0].upper()}{chosen_on(trials)[1:]}",
            *_test_images(front),
            f"rdi report 'runs=[{runs}]' lays these networks side by side.",
        ],
    )


def _test_images(front: Sequence[Entry]) -> list[str]:
    """Say how many images the test columns are of, where there are such columns."""
    found = [
        f"Test columns: {entry.manifest[0].data.samples['test']:,} clean images, worst of {len(entry.test[0].attacks)} "
        f"attacks on {entry.test[0].samples:,}."
        for entry in front
        if entry.manifest is not None and entry.test is not None
    ]
    return list(dict.fromkeys(found))


def _params(entries: Sequence[Entry]) -> list[str]:
    """List what was searched over, by name."""
    return list(dict.fromkeys(name for entry in entries for name in entry.trial.params))


def _figures(entry: Entry, objectives: Mapping[str, str]) -> list[str]:
    measured = entry.measured(objectives)
    return [shown(name, measured[name]) if measured else "-" for name in objectives]


def _record(found: tuple[WorstRecord, Source] | None) -> Cell:
    return Cell("-") if found is None else found[1].cell()


def _pictures(entries: Sequence[Entry], objectives: Mapping[str, str]) -> list[Pictures]:
    """Every two of the objectives against each other; nothing for a single objective."""
    points = []
    for entry in entries:
        if measured := entry.measured(objectives):
            manifest = None if entry.manifest is None else entry.manifest[0]
            points.append(
                {
                    "run": "trials" if manifest is None else manifest.backbone,
                    **dict.fromkeys(WORDS),
                    **measured,
                    "macs_plain": None if manifest is None else manifest.costs.macs_plain,
                    "on_front": entry.trial.on_front,
                }
            )
    front = sum(bool(point["on_front"]) for point in points)
    panels = [
        Panel(f"{title}: {front} of {len(points)} trials are on the front", content)
        for title, content in plots.front_panels(points)
    ]
    if not panels:
        return []
    caption = f"{conditions(entries)}. {len(points)} complete trials, {front} of them on the front."
    return [Pictures("Complete trials", caption, panels, svg.legend(plots.front_legend(points)))]


def _trials(entries: Sequence[Entry], objectives: Mapping[str, str]) -> Table:
    params = _params(entries)
    rows: list[list[str | Cell]] = [
        [
            str(entry.trial.number),
            f"{entry.trial.state}{', on the front' if entry.trial.on_front else ''}",
            *_figures(entry, objectives),
            *(tables.plain(entry.trial.params.get(name, "-")) for name in params),
            "-" if entry.trial.seconds is None else f"{entry.trial.seconds:.0f}",
            entry.trial.reason,
            _record(entry.worst),
        ]
        for entry in entries
    ]
    headers = ["trial", "state", *(WORDS[name] for name in objectives), *params, "seconds", "why", "record"]
    caption = f"Every trial that ended. {conditions(entries)}."
    notes = ["A killed trial was run again as another one."] if any(e.trial.state == KILLED for e in entries) else []
    return Table("All trials", caption, headers, rows, notes, words=("state", "why"))


def _settings(settings: Mapping[str, Any]) -> Table:
    rows: list[list[str | Cell]] = []
    for key, value in settings.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        rows += [[f"{key} {name}".strip(), tables.plain(one)] for name, one in inner]
    caption = "As it was given on the command line and in sweeps/; the search refuses to go on with other values."
    return Table("What was searched", caption, ["what", "value"], rows, words=("value",))


def _runs(entries: Sequence[Entry]) -> Table:
    rows: list[list[str | Cell]] = [
        [
            str(entry.trial.number),
            source.cell(entry.trial.run),
            manifest.identity,
            str(manifest.seed),
            provenance.commit(manifest.environment),
            f"{manifest.environment.device}, threads {manifest.environment.threads}",
            manifest.data.fingerprint[:12],
        ]
        for entry in entries
        if entry.manifest is not None
        for manifest, source in [entry.manifest]
    ]
    headers = ["trial", "run", "identity", "seed", "commit", "device", "data sha256"]
    caption = "From the manifest.json of each trial's run, written when it was trained."
    return Table("Runs", caption, headers, rows, words=("run", "commit", "device"))


def _files(entries: Sequence[Entry], files: Sequence[Source]) -> Table:
    found = [*files]
    for entry in entries:
        found += [part[1] for part in (entry.manifest, entry.worst, entry.test) if part is not None]
    return provenance.read_files(found)
