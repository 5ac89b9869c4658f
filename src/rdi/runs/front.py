"""Operating points of one or more runs and their front, with files and pictures."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from rdi import curves, evaluating, pareto, records, storage
from rdi.banks import CLEAN, LogitsBank, bank_sha256
from rdi.checks import integer, number
from rdi.config import build
from rdi.curves import CurvePoint
from rdi.errors import UserError
from rdi.folders import report_folder
from rdi.records import FrontRecord
from rdi.report import plots, tables, terminal
from rdi.runs.evaluate import front_threat, network_banks
from rdi.runs.folder import Run
from rdi.runs.options import Ball, Pareto, Report
from rdi.text import markdown
from rdi.threats import Threat, caption, trained
from rdi.thresholds import Bank
from rdi.tracking import Log, Wandb

logger = logging.getLogger("rdi")

RATIO_RANGE = (-1.2, 1.2)  # powers of ten: from 94 % of the images at the first exit to 94 % at the last
COLUMNS = ("run", "ratio", "clean_accuracy", "worst_accuracy", "mean_macs", "mean_macs_paper")
OBJECTIVES = ("clean_accuracy", "worst_accuracy", "mean_macs")
REFERENCE_RULE = "accuracy 0 at the cost of the dearest last exit, every head on the way"


@dataclass(frozen=True)
class Front:
    """Result of a comparison of runs.

    points: rows of points.csv.
    curves: run -> (columns that its rows of curves.csv share, its points).
    sources: files that the figures come from.
    record: the front, and its conditions.
    """

    points: list[dict[str, Any]]
    curves: dict[str, tuple[dict[str, Any], list[CurvePoint]]]
    sources: list[dict[str, Any]]
    record: FrontRecord
    out: Path
    threat: Threat

    @property
    def front(self) -> list[dict[str, Any]]:
        """The points on the front, cheapest first."""
        return sorted((point for point in self.points if point["on_front"]), key=lambda point: point["mean_macs"])

    def curve_rows(self, runs: Iterable[str] | None = None) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of curves.csv, run by run; None: of all of them. There may be thousands."""
        for name in self.curves if runs is None else runs:
            common, points = self.curves[name]
            yield [{"run": name, **asdict(point), **common} for point in points]

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
    if not paths:
        raise UserError("runs is empty: give runs=[runs/a,runs/b]")
    if twice := [name for name, count in Counter(Path(path).resolve() for path in paths).items() if count > 1]:
        raise UserError(f"runs names {twice[0]} twice: give every run once")
    return [Run.open(path) for path in paths]


def compute(runs: Sequence[Run], options: Report) -> Front:
    """Operating points of all runs, and which of them are on the front. Raises UserError when banks are missing."""
    ratios = np.logspace(*RATIO_RANGE, integer("ratios", options.ratios, 2))
    names = labels(runs)
    points, sources, found = [], [], {}
    threat = one_threat(runs, options.threat)
    for run, name in zip(runs, names, strict=True):
        mine, source, found[name] = judged(run, name, ratios, threat)
        points += mine
        sources.append(source)
    has_worst = all(point["worst_accuracy"] is not None for point in points)
    if not has_worst and any(point["worst_accuracy"] is not None for point in points):
        missing = next(point["run"] for point in points if point["worst_accuracy"] is None)
        raise UserError(f"{missing} has no attack but on its policy, the others have: run `rdi attack` on it first")
    if not has_worst and any(front_threat(run, Ball()) for run in runs):
        logger.warning("the front is of clean images only: attacks aimed at a policy are no part of it")
    objectives = OBJECTIVES if has_worst else (OBJECTIVES[0], OBJECTIVES[-1])
    maximise = tuple(name != "mean_macs" for name in objectives)
    values = np.array([[point[key] for key in objectives] for point in points], dtype=float)
    for point, kept in zip(points, pareto.non_dominated(values, maximise), strict=True):
        point["on_front"] = bool(kept)
    reference, rule = reference_point(runs, options.reference_macs, len(objectives))
    starts = range(0, len(points), len(ratios))
    kept_of = Counter(point["run"] for point in points if point["on_front"])

    def volume(chosen: slice) -> float:
        return pareto.hypervolume(values[chosen], maximise, reference) / reference[-1]

    record = FrontRecord(
        runs=tuple(str(run.path) for run in runs),
        objectives=objectives,
        maximise=maximise,
        reference=reference,
        reference_rule=rule,
        hypervolume=volume(slice(None)),
        # every run has a point for each ratio
        hypervolume_of={name: volume(slice(k, k + len(ratios))) for name, k in zip(names, starts, strict=True)},
        points=len(points),
        points_on_front=sum(point["on_front"] for point in points),
        front_of={name: kept_of[name] for name in names},
        ratios=tuple(ratios.tolist()),
        conditions=tuple(source["conditions"] for source in sources),
        sha256=hashlib.sha256(tables.comma_separated(points).encode()).hexdigest(),
    )
    out = report_folder(options.name or runs[0].folder.name)
    return Front(points, found, sources, record, out, threat)


def draw(runs: Sequence[Run], options: Pareto) -> Front:
    """Work out the front, write its files, and send it to the tracking."""
    tracking: Wandb = build(options.tracking, "tracking")
    found = compute(runs, options)
    write(found)
    with tracking.start(found.out, "pareto", {"runs": list(found.record.runs)}, group(runs, found.out)) as log:
        track(found, log)
    return found


def text(found: Front) -> str:
    """Render the front as a table, and where its files are."""
    out, best = found.out, found.front
    return (
        f"\nfront: {len(best)} of {len(found.points)} operating points ({found.conditions})\n"
        f"{terminal.table(*tables.front(best[:: max(1, len(best) // 8)]))}\n\n{tables.hypervolume(found.record)}\n\n"
        f"picture: {out / 'front.png'} (.svg, .pdf)\ntable:   {out / 'table.md'}\npoints:  {out / 'points.csv'}\n"
        f"curves:  {out / 'curves.png'} (.svg, .pdf), {out / 'curves.csv'}\nsummary: {out / 'summary.json'}"
    )


def labels(runs: Sequence[Run]) -> list[str]:
    """Name the runs in tables and pictures: their own names, or their paths where names are equal."""
    names = [run.folder.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def reference_point(runs: Sequence[Run], macs: float | None, objectives: int) -> tuple[tuple[float, ...], str]:
    """Return the corner that hypervolumes are measured from, and how it was chosen.

    macs: given by the user, so that volumes of several reports can be compared; None: no point of these runs lies
    beyond. Raises UserError for a cost that is no positive number.
    """
    accuracies = (0.0,) * (objectives - 1)
    if macs is not None:
        return (*accuracies, number("reference_macs", macs, 0, math.inf, open_low=True)), "reference_macs as given"
    return (*accuracies, float(max(run.manifest.costs.macs[-1] for run in runs))), REFERENCE_RULE


def write(found: Front) -> None:
    """Write points.csv, front.csv, table.md, curves.csv, sources.json, summary.json and the pictures."""
    front = found.front
    parts = [markdown(found.conditions), tables.text(*tables.front(front), "github")]
    drawn = [row for rows in found.curve_rows(plots.named(found.points)) for row in rows]
    contents = {
        "points.csv": tables.comma_separated(found.points).encode(),
        "front.csv": tables.comma_separated(front).encode(),
        "table.md": "\n\n".join([*parts, markdown(tables.hypervolume(found.record)) + "\n"]).encode(),
        **{f"front.{kind}": drawing for kind, drawing in plots.front(found.points, found.conditions).items()},
        **{f"curves.{kind}": drawing for kind, drawing in plots.curves(drawn, found.conditions).items()},
    }
    for name, content in contents.items():
        storage.write_bytes(found.out / name, content)
    storage.write_stream(found.out / "curves.csv", lambda stream: write_curves(found, stream))
    records.write(found.out / "sources.json", {"runs": found.sources, "ratios": list(found.record.ratios)})
    records.write(found.out / "summary.json", found.record)


def write_curves(found: Front, stream: IO[bytes]) -> None:
    """Write curves.csv run by run."""
    for index, rows in enumerate(found.curve_rows()):
        stream.write(tables.comma_separated(rows, header=index == 0).encode())


def track(found: Front, log: Log) -> None:
    """Log points and front as tables, a chart for every pair of objectives, and the figures of the record."""
    columns = [*COLUMNS, "on_front"]
    log.table("points", columns, [[point[c] for c in columns] for point in found.points])
    log.table("front", list(COLUMNS), [[point[c] for c in COLUMNS] for point in found.front])
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


def group(runs: Sequence[Run], out: Path) -> str | None:
    """Under which group the front is tracked: that of its runs; for several runs without one, the report's name."""
    trackings = [run.manifest.config.get("tracking") or {} for run in runs]
    groups = {tracking.get("group") for tracking in trackings}
    if len(groups) == 1 and (shared := groups.pop()) is not None:
        return str(shared)
    return out.name if len(runs) > 1 else None


def one_threat(runs: Sequence[Run], wanted: Ball) -> Threat:
    """Return the threat model that all runs are judged under: accuracies under two do not compare.

    wanted: as the user typed it. Raises UserError when that leaves none, or several.
    """
    found = {run.path: threat for run in runs if (threat := front_threat(run, wanted)) is not None}
    if len(set(found.values())) > 1:
        (path, first), *others = found.items()
        other, threat = next(one for one in others if one[1] != first)
        raise UserError(
            f"{path} was attacked at eps {first.size}, {other} at eps {threat.size}, and a front has one "
            f"threat model: choose it with threat.eps=..., and attack those runs that were not attacked at it: "
            f"rdi attack run={other} {first.options}"
        )
    return next(iter(found.values()), trained(runs[0].manifest))


def judged(
    run: Run, name: str, ratios: np.ndarray, threat: Threat
) -> tuple[list[dict[str, Any]], dict[str, Any], tuple[dict[str, Any], list[CurvePoint]]]:
    """Return rows for points.csv, what they were made from, and the curves of one run; its banks are not kept.

    Raises UserError when banks are missing.
    """
    folder, manifest, banks = run.folder, run.manifest, network_banks(run, threat)
    if CLEAN not in banks:
        raise UserError(f"{folder.path} has no clean test logits: run `rdi attack run={folder.path}` first")
    attacked = {attack: bank for attack, bank in banks.items() if attack != CLEAN}
    calibration = LogitsBank.load(folder.bank("calibration", CLEAN))
    clean = banks[CLEAN]
    score, costs = build(score_node(manifest.config["threshold"]), "threshold.score"), manifest.costs
    found = evaluating.sweep(
        calibration.logits,
        (clean.logits, clean.labels),
        [(bank.logits, bank.labels) for bank in attacked.values()],
        score,
        costs,
        ratios,
        clean.skipped,
    )
    rows = [
        {
            "run": name,
            "ratio": point.ratio,
            "clean_accuracy": point.clean_accuracy,
            "worst_accuracy": point.worst_accuracy,
            "mean_macs": point.mean_macs,
            "mean_macs_paper": point.mean_macs_paper,
            "macs_plain": manifest.costs.macs_plain,
            "clean_images": len(clean.indices),
            "worst_images": len(next(iter(attacked.values())).indices) if attacked else None,
            "thresholds": " ".join(f"{value:.6g}" for value in point.values),
            "on_front": False,
        }
        for point in found
    ]
    worst = f"; worst of {len(attacked)} on {len(next(iter(attacked.values())).indices):,} images" if attacked else ""
    source = {
        "run": str(folder.path),
        "conditions": f"{caption(manifest, (bank.manifest for bank in banks.values()))}{worst}",
        "identity": manifest.identity,
        "checkpoint_sha256": manifest.checkpoint_sha256,
        "score": score_node(manifest.config["threshold"]),
        "banks": {str(path): bank_sha256(path) for path in (folder.bank("test", attack) for attack in banks)},
    }
    logits = {attack: Bank(bank.logits, bank.labels, bank.skipped) for attack, bank in banks.items()}
    points = curves.anytime(logits, costs) + curves.budgeted(calibration.logits, logits, score, costs, ratios)
    return rows, source, ({"macs_plain": costs.macs_plain, "macs_plain_paper": costs.macs_plain_paper}, points)


def score_node(rule: dict[str, Any]) -> dict[str, Any]:
    """Return the score of a threshold rule's node, or of the rule in it; entropy for a rule without one."""
    while "rule" in rule:
        rule = rule["rule"]
    return rule.get("score", {"_target_": "rdi.thresholds.Entropy"})
