"""A table of a paper out of records: one row per experiment, mean and deviation over seeds, published cells below."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rdi.records import CertificateRecord, Costs, EvalRecord, Size, WorstRecord
from rdi.report import sizes, styles
from rdi.report.tables import percent

NOT_RUN = "-"
SINGLE = "single_exit"
SIZES = ("non-zeros %", "size % (published count)", "size % (with positions)")
FACTORS = "in full/square/sparse factor %"
EXTRA = {"slowdown": "MACs (M) under slowdown", "seconds": "training (s)"}
"""Name in a table's specification -> column."""
MFLOP = 2**20
"""The unit of Hu et al. (ICLR 2020), whose code divides multiply-adds by 2^20 where it says million."""


@dataclass(frozen=True)
class Run:
    """Records of one run under one exit policy.

    evals: attack (without what it aims at) -> record.
    size: of a compressed network; None of others, which have all their weights.
    seconds: of the training, on the machine that it ran on.
    certificate: of the policy under the run's own threat model.
    """

    costs: Costs
    evals: Mapping[str, EvalRecord]
    worst: WorstRecord | None
    size: Size | None = None
    seconds: float | None = None
    certificate: CertificateRecord | None = None


@dataclass(frozen=True)
class Row:
    """One experiment: its runs (one per seed; none: not run yet) and the published figures, column -> percent."""

    label: str
    runs: Sequence[Run]
    published: Mapping[str, float] = field(default_factory=dict)


def columns(attacks: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """List the accuracy columns: "clean", the attacks with "single" taken apart into exits, "lowest" and "worst".

    Where any run has a certificate "certified" follows.
    """
    exits = max((len(run.costs.macs) for row in rows for run in row.runs), default=0)
    singles = [f"{SINGLE}{k}" for k in range(exits)]
    found: list[str] = []
    for name in attacks:
        found += (singles or ["single"]) if name == "single" else [name]
    certified = any(run.certificate for row in rows for run in row.runs)
    return ["clean", *found, "lowest", "worst", *(["certified"] if certified else [])]


def table(
    attacks: Sequence[str], rows: Sequence[Row], extra: Sequence[str] = (), *, printed: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells. "-": not run. A published row has an empty cell for what nobody could obtain.

    attacks: names of the accuracy columns; "single" stands for one column per exit (0-based, the last is the full
        network).
    extra: of EXTRA, further columns.
    printed: headers as a paper prints them. Accuracies in percent, mean and sample deviation over seeds; costs are
        those on clean images. lowest: of a run's own figures under attack, which is what papers call the worst; worst:
        per image. Where a network is compressed, its size follows: non-zeros and bits, positions counted, over those of
        the dense network.
    """
    names = columns(attacks, rows)
    compressed = any(run.size for row in rows for run in row.runs)
    factorised = any(run.size.factors for row in rows for run in row.runs if run.size)
    headers = [
        "",
        "seeds",
        *(styles.display_name(name) if printed else _title(name) for name in names),
        "MACs (M)",
        "saved %",
        "paper MFlops",
        "paper saved %",
        "leave at exit %",
        *(EXTRA[name] for name in extra),
        *(SIZES if compressed else ()),
        *((FACTORS,) if factorised else ()),
    ]
    cells = []
    for row in rows:
        further = [*(_extra(row, name) for name in extra), *(_sizes(row) if compressed else [])]
        further += [_factors(row)] if factorised else []
        seeds = str(len(row.runs)) if row.runs else NOT_RUN
        cells.append([row.label, seeds, *_accuracies(row, names), *_costs(row), *further])
        if row.published:
            figures = {**row.published, **lowest(row.published, names)}
            published = [f"{figures[name]:.2f}" if name in figures else "" for name in names]
            cells.append([f"{row.label}, published", "", *published, *[""] * (5 + len(further))])
    return headers, cells


def _title(name: str) -> str:
    return f"exit {name.removeprefix(SINGLE)}" if name.startswith(SINGLE) else name.replace("_", "-")


def _accuracies(row: Row, names: Sequence[str]) -> list[str]:
    found = [_figures(run, names) for run in row.runs]
    return [_spread([value for one in found if (value := one.get(name)) is not None], percent) for name in names]


def _figures(run: Run, names: Sequence[str]) -> dict[str, float]:
    """Column -> accuracy, as far as it was measured."""
    single = {f"{SINGLE}{k}" for k in range(len(run.costs.macs))}
    figures = {attack: record.accuracy for attack, record in run.evals.items()}
    figures |= lowest(figures, [name for name in names if not name.startswith(SINGLE) or name in single])
    figures |= {} if run.worst is None else {"worst": run.worst.accuracy}
    return figures | ({} if run.certificate is None else {"certified": run.certificate.accuracy})


def lowest(figures: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Return the smallest figure under attack as "lowest"; nothing unless all of the columns `names` have one."""
    attacked = [figures.get(name) for name in names if name not in ("clean", "lowest", "worst", "certified")]
    known = [value for value in attacked if value is not None]
    return {"lowest": min(known)} if known and len(known) == len(attacked) else {}


def dense(run: Run) -> Costs:
    """Return the costs of the network before compression, against which a table counts what is saved."""
    return run.size.costs_dense if run.size else run.costs


def _costs(row: Row) -> list[str]:
    clean = [(run, run.evals["clean"]) for run in row.runs if "clean" in run.evals]
    shares = [record.exit_share for _, record in clean]
    return [
        _spread([record.mean_macs for _, record in clean], lambda value: f"{value / 1e6:.2f}"),
        _spread([1 - record.mean_macs / dense(run).macs_plain for run, record in clean], percent),
        _spread([record.mean_macs_paper for _, record in clean], lambda value: f"{value / MFLOP:.2f}"),
        _spread([1 - record.mean_macs_paper / dense(run).macs_plain_paper for run, record in clean], percent),
        "/".join(f"{100 * statistics.fmean(share):.0f}" for share in zip(*shares, strict=True)) or NOT_RUN,
    ]


def _sizes(row: Row) -> list[str]:
    found = [run.size for run in row.runs if run.size]
    return [
        _spread([size.ratio for size in found], percent),
        _spread([size.size_published for size in found], percent),
        _spread([size.size for size in found], percent),
    ]


def _factors(row: Row) -> str:
    """Return the shares that ATMC's factors hold, of the first seed."""
    return next((sizes.shares(run.size) for run in row.runs if run.size and run.size.factors), NOT_RUN)


def _extra(row: Row, name: str) -> str:
    if name == "seconds":
        return _spread([run.seconds for run in row.runs if run.seconds is not None], lambda value: f"{value:.0f}")
    return _spread([run.evals[name].mean_macs for run in row.runs if name in run.evals], lambda v: f"{v / 1e6:.2f}")


def _spread(values: Sequence[float], shown: Callable[[float], str]) -> str:
    """Mean, and the sample deviation where there are several seeds."""
    if not values:
        return NOT_RUN
    mean = shown(statistics.fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {shown(statistics.stdev(values))} (n={len(values)})"
