"""A table of a paper out of records: one row per experiment, mean and deviation over seeds, published cells below."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rdi.records import Costs, EvalRecord, WorstRecord
from rdi.report.tables import percent

NOT_RUN = "-"
SINGLE = "single_exit"
MFLOP = 2**20
"""The paper's unit: multiply-adds of convolutions, divided by 2^20 (PAPER.md section 3)."""


@dataclass(frozen=True)
class Run:
    """What one run's folder says under one exit policy. evals: attack (without what it aims at) -> record."""

    seed: int
    costs: Costs
    evals: Mapping[str, EvalRecord]
    worst: WorstRecord | None


@dataclass(frozen=True)
class Row:
    """One experiment: its runs (one per seed; none: not run yet) and the published figures, column -> percent."""

    label: str
    runs: Sequence[Run]
    published: Mapping[str, float] = field(default_factory=dict)


def columns(attacks: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The accuracy columns: "clean", the attacks with "single" taken apart into exits, and "worst"."""
    exits = max((len(run.costs.macs) for row in rows for run in row.runs), default=0)
    singles = [f"{SINGLE}{k}" for k in range(exits)]
    found: list[str] = []
    for name in attacks:
        found += (singles or ["single"]) if name == "single" else [name]
    return ["clean", *found, "worst"]


def table(attacks: Sequence[str], rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells. "-": not run. A published row has an empty cell for what nobody could obtain.

    attacks: names of the accuracy columns; "single" stands for one column per exit (0-based, the last is the full
    network). Accuracies in percent, mean and sample deviation over seeds; costs are those on clean images.
    """
    names = columns(attacks, rows)
    headers = [
        "",
        "seeds",
        *(_title(name) for name in names),
        "MACs (M)",
        "saved %",
        "paper MFlops",
        "paper saved %",
        "leave at exit %",
    ]
    cells = []
    for row in rows:
        cells.append([row.label, str(len(row.runs)) if row.runs else NOT_RUN, *_accuracies(row, names), *_costs(row)])
        if row.published:
            published = [f"{row.published[name]:.2f}" if name in row.published else "" for name in names]
            cells.append([f"{row.label}, published", "", *published, *[""] * 5])
    return headers, cells


def _title(name: str) -> str:
    return f"exit {name.removeprefix(SINGLE)}" if name.startswith(SINGLE) else name.replace("_", "-")


def _accuracies(row: Row, names: Sequence[str]) -> list[str]:
    cells = []
    for name in names:
        if name == "worst":
            cells.append(_spread([run.worst.accuracy for run in row.runs if run.worst], percent))
        else:
            cells.append(_spread([run.evals[name].accuracy for run in row.runs if name in run.evals], percent))
    return cells


def _costs(row: Row) -> list[str]:
    clean = [(run, run.evals["clean"]) for run in row.runs if "clean" in run.evals]
    shares = [record.exit_share for _, record in clean]
    return [
        _spread([record.mean_macs for _, record in clean], lambda value: f"{value / 1e6:.2f}"),
        _spread([record.saving for _, record in clean], percent),
        _spread([record.mean_macs_paper for _, record in clean], lambda value: f"{value / MFLOP:.2f}"),
        _spread([record.saving_paper for _, record in clean], percent),
        "/".join(f"{100 * statistics.fmean(share):.0f}" for share in zip(*shares, strict=True)) or NOT_RUN,
    ]


def _spread(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """Mean, and the sample deviation where there are several seeds."""
    if not values:
        return NOT_RUN
    mean = shown(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {shown(statistics.stdev(values))} (n={len(values)})"
