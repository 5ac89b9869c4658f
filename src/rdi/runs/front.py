"""Operating points of one or more runs and their front, with files and pictures."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from rdi import pareto, records, storage
from rdi.checks import integer, number
from rdi.config import build
from rdi.curves import CurvePoint
from rdi.errors import UserError
from rdi.folders import report_folder
from rdi.records import FrontRecord
from rdi.report import plots, tables, terminal
from rdi.runs import operating_points
from rdi.runs.folder import Run
from rdi.runs.operating_points import COLUMNS as FURTHER
from rdi.runs.operating_points import Facts, facts
from rdi.runs.options import Ball, Pareto, Report
from rdi.runs.points_index import PointsIndex
from rdi.runs.rows import Rows
from rdi.text import markdown
from rdi.threats import ThreatModel, asked, choose
from rdi.tracking import Log, Wandb

logger = logging.getLogger("rdi")

RATIO_RANGE = (-1.2, 1.2)  # powers of ten: from 94 % of the images at the first exit to 94 % at the last
COLUMNS = ("run", "ratio", "clean_accuracy", "worst_accuracy", "mean_macs", "mean_macs_paper")
ROW = (*COLUMNS, "macs_plain", "clean_images", "worst_images", *FURTHER, "thresholds", "on_front")
"""Columns of points.csv."""
CURVE = [field.name for field in fields(CurvePoint)]
"""Columns of curves.csv that its rows do not share."""
OBJECTIVES = ("clean_accuracy", "worst_accuracy", "mean_macs")
REFERENCE_RULE = "accuracy 0 at the cost of the costliest last exit, every head on the way"


@dataclass(frozen=True)
class Front:
    """Result of a comparison of runs.

    points: rows of points.csv.
    known: run -> where its points lie in the index.
    sources: files that the figures come from.
    record: the front, and its conditions.
    group: that the front is tracked under.
    """

    points: Rows
    known: dict[str, str]
    sources: list[dict[str, Any]]
    record: FrontRecord
    out: Path
    threat: ThreatModel
    group: str | None
    index: PointsIndex

    @property
    def front(self) -> list[dict[str, Any]]:
        """The points on the front, cheapest first."""
        return sorted((point for point in self.points if point["on_front"]), key=lambda point: point["mean_macs"])

    def curve_rows(self, runs: Iterable[str] | None = None) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of curves.csv, run by run; None: of all of them. There may be thousands."""
        for name in self.known if runs is None else runs:
            common, points = self.index.answer(self.known[name])["curves"]
            yield [{"run": name, **dict(zip(CURVE, point, strict=True)), **common} for point in points]

    @property
    def curve_points(self) -> list[dict[str, Any]]:
        """All of them at once, for the few runs of a page."""
        return [row for rows in self.curve_rows() for row in rows]

    @property
    def conditions(self) -> str:
        """Data, images and attacks of all runs, in words."""
        return tables.conditions(self.record)


def opened(paths: Sequence[str]) -> list[Run]:
    """Open the runs to be compared. Raises UserError for none, one named twice, and one that is not finished."""
    return [Run.open(**run.arguments) for run in named(paths)]


def named(paths: Sequence[str]) -> list[Run]:
    """Return the runs to be compared, unread: there may be thousands, and what they come to may be known.

    Raises UserError for none, one named twice, and a folder that is none.
    """
    if not paths:
        raise UserError("runs is empty: give runs=[runs/a,runs/b]")
    if twice := [name for name, count in Counter(Path(path).resolve() for path in paths).items() if count > 1]:
        raise UserError(f"runs names {twice[0]} twice: give every run once")
    return [Run(path) for path in paths]


def compute(runs: Sequence[Run], options: Report) -> Front:
    """Operating points of all runs, and which of them are on the front.

    Raises UserError for a run that is not finished, and when banks are missing.
    """
    ratios = np.logspace(*RATIO_RANGE, integer("ratios", options.ratios, 2))
    names, index = labels(runs), PointsIndex()
    found = [facts(index, run) for run in _seen(runs, "opening runs")]
    threat = one_threat(runs, found, options.threat)
    corrupted = comparable(runs, found)
    rows, sources, known = Rows(ROW), [], {}
    for run, name in zip(_seen(runs, "judging operating points"), names, strict=True):
        known[name] = operating_points.known(index, run, ratios, threat, corrupted)
        mine = index.answer(known[name])
        rows.extend(mine["rows"], run=name, on_front=False)
        sources.append(mine["source"])
    rows = rows.without([key for key in FURTHER if all(one is None for one in rows.column(key))])
    has_worst = None not in rows.column("worst_accuracy")
    if not has_worst and any(one is not None for one in rows.column("worst_accuracy")):
        missing = next(point["run"] for point in rows if point["worst_accuracy"] is None)
        raise UserError(f"{missing} has no attack but on its policy, the others have: run `rdi attack` on it first")
    if not has_worst and any(one.attacked for one in found):
        logger.warning("the front is of clean images only: attacks aimed at a policy are no part of it")
    objectives = OBJECTIVES if has_worst else (OBJECTIVES[0], OBJECTIVES[-1])
    maximise = tuple(name != "mean_macs" for name in objectives)
    values = np.array([rows.column(key) for key in objectives], dtype=float).T
    kept = pareto.non_dominated(values, maximise).tolist()
    rows = rows.replaced("on_front", kept)
    reference, rule = reference_point(found, options.reference_macs, len(objectives))
    starts = range(0, len(rows), len(ratios))
    kept_of = Counter(name for name, one in zip(rows.column("run"), kept, strict=True) if one)

    def volume(chosen: slice) -> float:
        return pareto.hypervolume(values[chosen], maximise, reference) / reference[-1]

    digest = hashlib.sha256()
    tables.write_csv(rows, digest.update)
    record = FrontRecord(
        runs=tuple(str(run.path) for run in runs),
        objectives=objectives,
        maximise=maximise,
        reference=reference,
        reference_rule=rule,
        hypervolume=volume(slice(None)),
        # every run has a point for each ratio
        hypervolume_of={name: volume(slice(k, k + len(ratios))) for name, k in zip(names, starts, strict=True)},
        points=len(rows),
        points_on_front=sum(kept),
        front_of={name: kept_of[name] for name in names},
        ratios=tuple(ratios.tolist()),
        conditions=tuple(source["conditions"] for source in sources),
        sha256=digest.hexdigest(),
    )
    out = report_folder(options.name or runs[0].folder.name)
    return Front(rows, known, sources, record, out, threat, group(found, out), index)


def _seen(runs: Sequence[Run], title: str) -> tqdm:
    """The runs, with a bar of how many are done that long work shows."""
    return tqdm(
        runs, title, unit="run", disable=None if len(runs) > 1 else True, leave=False, delay=1, dynamic_ncols=True
    )


def draw(runs: Sequence[Run], options: Pareto) -> Front:
    """Work out the front, write its files, and send it to the tracking."""
    tracking: Wandb = build(options.tracking, "tracking")
    found = compute(runs, options)
    write(found)
    with tracking.start(found.out, "pareto", {"runs": list(found.record.runs)}, found.group) as log:
        track(found, log)
    return found


def comparable(runs: Sequence[Run], found: Sequence[Facts]) -> str:
    """Name the corruptions that all runs with corrupted images share; empty of none, and of several, which is said."""
    made = {run.path: one.corrupted for run, one in zip(runs, found, strict=True) if one.corrupted}
    if len(set(made.values())) > 1:
        said = "; ".join(f"{path}: {text}" for path, text in made.items())
        logger.warning("no column of corrupted images, as means over other corruptions do not compare: %s", said)
    return next(iter(made.values())) if len(set(made.values())) == 1 else ""


def text(found: Front) -> str:
    """Render the front as a table, and where its files are."""
    out, best = found.out, found.front
    lines = [terminal.table(*tables.front(best[:: max(1, len(best) // 8)])), tables.front_note(best)]
    return (
        f"\nfront: {len(best)} of {len(found.points)} operating points ({found.conditions})\n"
        + "\n\n".join([*filter(None, lines), tables.hypervolume(found.record)])
        + f"\n\npicture: {out / 'front.png'} (.svg, .pdf)\ntable:   {out / 'table.md'}\npoints:  {out / 'points.csv'}\n"
        f"curves:  {out / 'curves.png'} (.svg, .pdf), {out / 'curves.csv'}\nsummary: {out / 'summary.json'}"
    )


def labels(runs: Sequence[Run]) -> list[str]:
    """Name the runs in tables and pictures: their own names, or their paths where names are equal."""
    names = [run.folder.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def reference_point(found: Sequence[Facts], macs: float | None, objectives: int) -> tuple[tuple[float, ...], str]:
    """Return the corner that hypervolumes are measured from, and how it was chosen.

    macs: given by the user, so that volumes of several reports can be compared; None: no point of these runs lies
    beyond. Raises UserError for a cost that is no positive number.
    """
    accuracies = (0.0,) * (objectives - 1)
    if macs is not None:
        return (*accuracies, number("reference_macs", macs, 0, math.inf, open_low=True)), "reference_macs as given"
    return (*accuracies, float(max(one.macs for one in found))), REFERENCE_RULE


def write(found: Front) -> None:
    """Write points.csv, front.csv, table.md, curves.csv, sources.json, summary.json and the pictures."""
    front = found.front
    note = tables.front_note(front).replace("\n", " ")
    parts = [markdown(found.conditions), tables.text(*tables.front(front), "github"), *([note] if note else [])]
    drawn = [row for rows in found.curve_rows(plots.named(found.points)) for row in rows]
    contents = {
        "front.csv": tables.comma_separated(front).encode(),
        "table.md": "\n\n".join([*parts, markdown(tables.hypervolume(found.record)) + "\n"]).encode(),
        **{f"front.{kind}": drawing for kind, drawing in plots.front(found.points, found.conditions).items()},
        **{f"curves.{kind}": drawing for kind, drawing in plots.curves(drawn, found.conditions).items()},
    }
    for name, content in contents.items():
        storage.write_bytes(found.out / name, content)
    storage.write_stream(found.out / "points.csv", lambda stream: tables.write_csv(found.points, stream.write))
    storage.write_stream(found.out / "curves.csv", lambda stream: write_curves(found, stream))
    records.write(found.out / "sources.json", {"runs": found.sources, "ratios": list(found.record.ratios)})
    records.write(found.out / "summary.json", found.record)


def write_curves(found: Front, stream: IO[bytes]) -> None:
    """Write curves.csv run by run."""
    for index, rows in enumerate(found.curve_rows()):
        stream.write(tables.comma_separated(rows, header=index == 0).encode())


def track(found: Front, log: Log) -> None:
    """Log points and front as tables, a chart for every pair of objectives, and the figures of the record."""
    front = [*COLUMNS, *(key for key in FURTHER if key in found.points[0])]
    columns = [*front, "on_front"]
    log.table("points", columns, [[point[c] for c in columns] for point in found.points])
    log.table("front", front, [[point[c] for c in front] for point in found.front])
    for x, y in plots.projections(found.points):
        log.scatter(f"{y} against {x}", columns, [[p[c] for c in columns] for p in found.points], x=x, y=y)
    record = found.record
    log.summary(
        {
            "points": record.points,
            "points_on_front": record.points_on_front,
            "hypervolume": record.hypervolume,
            "reference_macs": record.reference[-1],
            **{f"hypervolume/{name}": value for name, value in record.hypervolume_of.items()},
        }
    )


def group(found: Sequence[Facts], out: Path) -> str | None:
    """Under which group the front is tracked: that of its runs; for several runs without one, the report's name."""
    groups = {one.group for one in found}
    if len(groups) == 1 and (shared := groups.pop()) is not None:
        return str(shared)
    return out.name if len(found) > 1 else None


def one_threat(runs: Sequence[Run], found: Sequence[Facts], wanted: Ball) -> ThreatModel:
    """Return the threat model that all runs are judged under: accuracies under two do not compare.

    wanted: as the user typed it; without eps: see threats.choose. Raises UserError when that leaves none, or several.
    """
    chosen = [(run, one, _threat(run, one, wanted)) for run, one in zip(runs, found, strict=True)]
    there = [(run, one, threat) for run, one, threat in chosen if threat is not None]
    if other := next((one for one in there if one[2] != there[0][2]), None):
        (run, _, first), (away, fact, threat) = there[0], other
        norm = "" if first.norm == threat.norm else "threat.norm=... "
        raise UserError(
            f"{run.path} was attacked at eps {first.size}, {away.path} at eps {threat.size}, and a front has one "
            f"threat model: choose it with {norm}threat.eps=..., and attack those runs that were not attacked at it: "
            f"rdi attack run={away.path} {first.options(fact.own)}"
        )
    return there[0][2] if there else found[0].own


def _threat(run: Run, found: Facts, wanted: Ball) -> ThreatModel | None:
    """Under which threat model a run is compared with others; None of one that nobody attacked."""
    one = asked(wanted.eps, wanted.norm, found.own)
    return choose(found.attacked, found.own, one, str(run.path)) if found.attacked or one is not None else None
