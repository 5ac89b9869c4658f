"""A table of the paper: what is missing of it is run, and laid out beside the published figures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from rdi import records, storage, threats
from rdi.banks import bank_sha256
from rdi.errors import UserError
from rdi.folders import report_folder
from rdi.records import CertificateRecord, EvalRecord, Size, WorstRecord, read
from rdi.report import reproduction, tables, terminal
from rdi.report.page import Cell, Section, Table
from rdi.runs import experiments, front, page, stored, table_specs
from rdi.runs.experiments import Compose, Experiment
from rdi.runs.folder import Run
from rdi.runs.options import Report
from rdi.runs.options import Table as Options
from rdi.runs.table_specs import TableSpec
from rdi.text import markdown

logger = logging.getLogger("rdi")
SMOKE = "smoke"
"""The profile that is over before its duration could be measured."""
STYLES = {"md": "github", "tex": "latex_booktabs"}
Launch = Callable[[Sequence[Sequence[str]]], Sequence[Exception | None]]
"""Runs `rdi run` with each of these options; what each failed of, None for one that ended well."""


def run_table(options: Options, compose: Compose, launch: Launch) -> Generator[str, None, None]:
    """Run what is missing of the table that the options name; the table and its page, in words.

    Raises UserError for names that there are not, and at the end when an experiment failed.
    """
    spec = table_specs.table(options.name)
    profile = options.profile or experiments.default_profile(spec)
    if profile not in spec.profiles:
        raise UserError(f"table {options.name} has no profile {profile!r}: choose one of {', '.join(spec.profiles)}")
    everything = [experiments.taken(one) for one in experiments.planned(spec, options, profile, compose)]
    experiments.one_threat(everything)
    instead = "-".join(dict.fromkeys(one.stand_in for one in everything if one.stand_in))
    out = report_folder("-".join(filter(None, [options.name, profile, instead])))
    missing = [one for one in everything if not experiments.finished(one, spec)]
    logger.info("table %s, profile %s: %s", options.name, profile, spec.profiles[profile])
    logger.info("%d of %d experiments are finished: skipped", len(everything) - len(missing), len(everything))
    for one in everything:
        if one.taken:
            logger.info("%s: taken from %s, which was trained with these settings", one.label, one.folder.path)
    if instead:
        logger.warning("the data of this table are not there: %s stands in, and says so everywhere", instead)
    if profile != SMOKE:
        for line in experiments.forecast(missing):
            logger.info("%s", line)
    failures: dict[str, Exception] = {}
    for number in sorted({one.turn for one in missing}):
        turn = [one for one in missing if one.turn == number]
        ended = zip(turn, launch([one.options for one in turn]), strict=True)
        failures |= {one.label: error for one, error in ended if error is not None}
    yield from write(options.name, profile, spec, everything, out)
    if failures:
        label, first = next(iter(failures.items()))
        raise UserError(
            f"{len(failures)} of {len(missing)} experiments failed, the first ({label}): {str(first).splitlines()[0]}; "
            "the same command goes on with them"
        )


def write(
    name: str, profile: str, spec: TableSpec, everything: list[Experiment], out: Path
) -> Generator[str, None, None]:
    """Write the table as Markdown, LaTeX and CSV with its sources, then the page; what is said of both."""
    sources: dict[str, Any] = {}
    rows = []
    folders = {}
    for label, row in spec.rows.items():
        mine = [one for one in everything if one.label == label and one.folder.finished()]
        runs = [entry for one in mine if (entry := entries(one, sources)) is not None]
        rows.append(reproduction.Row(label, runs, row.published))
        folders[label] = [str(one.folder.path) for one in mine]
    headers, cells = reproduction.table(spec.attacks, rows, spec.extra)
    title = spec.title.format(data=" and ".join(dict.fromkeys(one.config["data"]["name"] for one in everything)))
    caption = f"{title}; profile {profile}. {conditions(everything)}"
    notes = (
        "lowest: the smallest of the row's figures under attack, the papers' worst case; worst: right under all of "
        "them, image by image. A network's last exit attacked alone is the main attack. "
        f"Published: {spec.source}. -: not run."
    )
    if "certified" in headers:
        notes += " certified: right under any attack within eps, image by image, by bounds."
    if "training (s)" in headers:
        notes += " training: wall time, beside whatever else the machine did."
    if lent := [one for one in everything if one.taken]:
        said = ", ".join(f"{one.label} from {one.folder.path}, exit policy {one.threshold}" for one in lent)
        notes += f" Trained before, and worst there under more attacks than these: {said}."
    for suffix, style in STYLES.items():
        titles = reproduction.table(spec.attacks, rows, spec.extra, printed=suffix == "tex")[0]
        text = tables.text(titles, cells, style)
        said = markdown(caption)
        content = f"{said}\n\n{text}\n\n{notes}\n" if suffix == "md" else f"% {caption}\n{text}\n% {notes}\n"
        storage.write_bytes(out / f"{name}.{suffix}", content.encode())
    rows_csv = [dict(zip(["row", *headers[1:]], line, strict=True)) for line in cells]
    storage.write_bytes(out / f"{name}.csv", tables.comma_separated(rows_csv).encode())
    records.write(out / f"{name}.json", {"table": name, "profile": profile, "rows": folders, "records": sources})
    yield f"\n{caption}\n\n{terminal.table(headers, cells)}\n\n{notes}\n\ntable:   {out / name}.md (.tex, .csv, .json)"
    # of what lies in results/ the logits are not kept
    done = [one.folder for one in everything if one.folder.finished() and one.folder.banks("test") and not one.taken]
    if done:
        linked: list[list[str | Cell]] = [[_cell(line[0], everything, out), *line[1:]] for line in cells]
        first = Table(title, caption, headers, linked, notes=[notes], words=headers[:1])
        yield write_page(front.opened([str(folder.path) for folder in done]), out, first)


def _cell(label: str, everything: list[Experiment], out: Path) -> Cell:
    """A row's label, leading to the manifest of its run at the first seed."""
    runs = [one.folder for one in everything if one.label == label and one.folder.finished()]
    return page.source(runs[0].manifest, out).cell(label) if runs else Cell(label)


def write_page(runs: list[Run], out: Path, table: Table) -> str:
    """Write the report on all runs of the table, with the table first."""
    found = front.compute(runs, Report(name=out.name))
    front.write(found)
    lead = "Ours from records, published figures as far as anybody could obtain them."
    return page.write(found, page.read(runs, found), [Section("table", "Table", lead, [table])])


def entries(one: Experiment, sources: dict[str, Any]) -> reproduction.Run | None:
    """Read the records of one experiment, and note their files in `sources`. None before it was judged."""
    manifest = one.folder.read_finished()
    evals = {}
    for name in one.folder.banks("test"):
        path = one.folder.evaluation(one.threshold, "test", name)
        if path.is_file():
            record = read(path, EvalRecord)
            evals[threats.display_name(name, one.threshold, record.settings)] = record
            sources[str(path)] = {"sha256": storage.sha256(path), "bank": bank_sha256(one.folder.bank("test", name))}
    worst = one.folder.worst(one.threshold, "test")
    certificate = one.folder.certificate(one.threshold, "test", None)
    if not evals:
        return None
    sources[str(one.folder.manifest)] = {"sha256": storage.sha256(one.folder.manifest)}
    return reproduction.Run(
        manifest.costs,
        evals,
        read(worst, WorstRecord) if worst.is_file() else None,
        read(one.folder.size, Size) if one.folder.size.is_file() else None,
        manifest.seconds,
        read(certificate, CertificateRecord) if certificate.is_file() else None,
    )


def conditions(everything: list[Experiment]) -> str:
    """Data, strength and number of images of what is finished, for the caption."""
    found = []
    for one in everything:
        if not one.folder.finished():
            continue
        manifest = one.folder.read_finished()
        own = (None, threats.trained(manifest))
        banks = [bank for bank in stored.manifests(one.folder).values() if threats.threat(bank.settings) in own]
        found.append(f"{manifest.data.name}, {threats.describe_banks(banks)}")
    return "; ".join(dict.fromkeys(found)) or "Nothing was run yet."
