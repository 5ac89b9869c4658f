"""`rdi table`: run what a table of the paper consists of, and lay it out beside the published figures."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from rdi import records, storage, threats
from rdi.banks import bank_sha256
from rdi.cli import _edge, _jobs, _spec
from rdi.cli._console import say
from rdi.cli._jobs import Job
from rdi.data import DataSet
from rdi.errors import UserError
from rdi.folders import RunFolder, report_folder
from rdi.records import BankManifest, EvalRecord, Size, WorstRecord, read
from rdi.report import networks, reproduction, tables, terminal
from rdi.report.page import Cell, Section, Table
from rdi.runs import datasets, duration, front, page, stored
from rdi.runs.folder import Run
from rdi.runs.identity import identity
from rdi.runs.options import Report
from rdi.text import markdown

logger = logging.getLogger("rdi")
SMOKE = "smoke"
"""The profile that is over before its duration could be measured."""
RESULTS = Path("results")
"""Where networks lie whose rows are taken."""
STYLES = {"md": "github", "tex": "latex_booktabs"}


@dataclass(frozen=True)
class Experiment:
    """One cell's worth of work: a row at one seed.

    threshold: name of the exit policy that it is judged by.
    turn: how many others come before it, each of which starts from the weights of the one before.
    taken: its folder is one of results/, trained before with these very settings.
    stand_in: the data choice that is taken in place of the row's own.
    """

    label: str
    seed: int
    folder: RunFolder
    threshold: str
    job: Job
    turn: int
    taken: bool = False
    stand_in: str | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config of the job."""
        return self.job.config()


def run(cfg: DictConfig) -> None:
    """Run what is missing of the table that `cfg` names, and print it."""
    config = _edge.resolved(cfg)
    spec = _spec.table(config["name"])
    profile = config["profile"] or default_profile(spec)
    if profile not in spec.profiles:
        raise UserError(f"table {config['name']} has no profile {profile!r}: choose one of {', '.join(spec.profiles)}")
    everything = [taken(one) for one in experiments(spec, config, profile)]
    one_threat(everything)
    instead = "-".join(dict.fromkeys(one.stand_in for one in everything if one.stand_in))
    out = report_folder("-".join(filter(None, [config["name"], profile, instead])))
    missing = [one for one in everything if not finished(one, spec)]
    logger.info("table %s, profile %s: %s", config["name"], profile, spec.profiles[profile])
    logger.info("%d of %d experiments are finished: skipped", len(everything) - len(missing), len(everything))
    for one in everything:
        if one.taken:
            logger.info("%s: taken from %s, which was trained with these settings", one.label, one.folder.path)
    if instead:
        logger.warning("the data of this table are not there: %s stands in, and says so everywhere", instead)
    if profile != SMOKE:
        for line in forecast(missing):
            logger.info("%s", line)
    failures: dict[str, Exception] = {}
    for number in sorted({one.turn for one in missing}):
        turn = [one for one in missing if one.turn == number]
        ended = zip(turn, _jobs.launch([one.job for one in turn]), strict=True)
        failures |= {one.label: error for one, error in ended if error is not None}
    show(config["name"], profile, spec, everything, out)
    if failures:
        label, first = next(iter(failures.items()))
        raise UserError(
            f"{len(failures)} of {len(missing)} experiments failed, the first ({label}): {str(first).splitlines()[0]}; "
            "the same command goes on with them"
        )


def one_threat(everything: list[Experiment]) -> None:
    """Raise UserError unless all rows are attacked at one eps: the figures of two do not compare."""
    first = {one.label: one for one in reversed(everything)}
    radii = {label: threats.Threat(one.config["threat"]["eps"]) for label, one in first.items()}
    if len(set(radii.values())) > 1:
        said = ", ".join(f"{label} {threats.pixels(threat.eps)}" for label, threat in radii.items())
        raise UserError(
            f"the rows are of several threat models, eps: {said}; give one to all, 'options=[threat.eps=...]'"
        )


def taken(one: Experiment) -> Experiment:
    """The experiment as it lies finished in results/, judged by the policy that it is deployed with there; or `one`."""
    if one.folder.started():
        return one
    for path in sorted(RESULTS.glob("*/manifest.json")):
        folder = RunFolder(path.parent)
        if folder.finished() and folder.read_finished().identity == identity(one.config):
            return replace(one, folder=folder, threshold=networks.deployed(folder.path), taken=True)
    return one


def forecast(missing: list[Experiment]) -> Iterator[str]:
    """How long the missing experiments will take on this machine, as a short measurement of each row says."""
    data: dict[str, DataSet] = {}
    total = 0.0
    for label in dict.fromkeys(one.label for one in missing):
        mine = [one for one in missing if one.label == label]
        config = mine[0].config
        key = str(config["data"])
        if key not in data:
            data[key] = datasets.source(config).load()
        found = duration.expected(config, data[key])
        total += len(mine) * found.total
        times = "" if len(mine) == 1 else f", times {len(mine)} seeds"
        yield (
            f"{label}: about {found.training / 60:,.0f} minutes of training ({found.steps:,} steps of "
            f"{found.training / found.steps:.2g} s), {found.attacks / 60:,.0f} of attacks{times}"
        )
    if missing:
        yield f"expected on this machine, as busy as it is now: about {total / 60:,.0f} minutes"


def default_profile(spec: _spec.TableSpec) -> str:
    """Choose what this machine can do: `fast` with a GPU, else `cpu` where the table has it, else `smoke`."""
    wanted = ("fast", "smoke") if torch.cuda.is_available() else ("cpu", "smoke")
    return next((name for name in wanted if name in spec.profiles), next(iter(spec.profiles)))


def experiments(spec: _spec.TableSpec, config: dict[str, Any], profile: str) -> list[Experiment]:
    """Every row at every seed, and what rows start from. Raises UserError for a row that there is not."""
    if config["rows"] == []:
        raise UserError(f"rows is empty: choose of {', '.join(spec.rows)}, or leave it out for all of them")
    if unknown := [name for name in config["rows"] or () if name not in spec.rows]:
        raise UserError(f"no row {unknown[0]!r} in table {config['name']}: choose of {', '.join(spec.rows)}")
    runs = _spec.runs()
    typed = dict(word.split("=", 1) for word in config["options"] if "=" in word)
    root = Path(typed.get("data.root") or os.environ.get("RDI_DATA") or datasets.DEFAULT)
    rows = {label: row.run for label, row in spec.rows.items() if label in (config["rows"] or spec.rows)}
    wanted = {run: label for label, run in rows.items()}
    for run in list(wanted):
        for start in runs.starts(run):
            wanted.setdefault(start, f"{start}, to start from")
    found = []
    for run, label in wanted.items():
        options = runs.options(run, profile)
        if options is None:
            continue
        instead = runs.stand_in([*options, *config["options"]], profile, root)
        if instead is not None:
            options = [f"data={instead}" if word.startswith("data=") else word for word in options]
        for seed in config["seeds"]:

            def path(name: str, seed: int = seed, data: str = f"-{instead}" if instead else "") -> Path:
                return Path(config["runs"]) / profile / f"{name}{data}-seed{seed}"

            start = runs.runs[run].start
            words = (
                *options,
                *([f"start={path(start)}"] if start else []),
                "tracking=none",
                f"suite={spec.suite}",
                "stages=[train,attack,evaluate]",
                f"seed={seed}",
                f"run={path(run)}",
                *([f"trust=[{','.join(config['trust'])}]"] if config["trust"] else []),
                *config["options"],
            )
            threshold = dict(word.split("=", 1) for word in options).get("threshold", "entropy")
            found.append(
                Experiment(
                    label, seed, RunFolder(path(run)), threshold, Job(words), len(runs.starts(run)), False, instead
                )
            )
    return found


def finished(one: Experiment, spec: _spec.TableSpec) -> bool:
    """Return whether an experiment is done: its run, the banks of the table's columns, their records."""
    if not one.folder.finished():
        return False
    if one.taken:
        return True
    config = one.config
    manifest = one.folder.read_finished()
    if manifest.identity != identity(config):
        return False  # the job itself says what differs
    samples = config["samples"] or manifest.data.samples["test"]
    for name in bank_names(spec, manifest.exits):
        bank = one.folder.bank("test", name) / "manifest.json"
        if not bank.is_file() or read(bank, BankManifest).samples != (
            manifest.data.samples["test"] if name == "clean" else samples
        ):
            return False
        judged = one.folder.evaluation(one.threshold, "test", name)
        if not judged.is_file() or read(judged, EvalRecord).bank_sha256 != bank_sha256(bank.parent):
            return False
    # the last things that a job writes
    return all(
        path.is_file()
        for path in (one.folder.worst(one.threshold, "test"), one.folder.early_exit(one.threshold, "test"))
    )


def bank_names(spec: _spec.TableSpec, exits: int) -> list[str]:
    """Names of the banks behind the columns of a table."""
    found = ["clean"]
    for name in spec.attacks:
        found += [f"{reproduction.SINGLE}{k}" for k in range(exits)] if name == "single" else [name]
    return found


def show(name: str, profile: str, spec: _spec.TableSpec, everything: list[Experiment], out: Path) -> None:
    """Print the table, write it as Markdown, LaTeX and CSV with its sources, and make the page."""
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
    say(f"\n{caption}\n\n{terminal.table(headers, cells)}\n\n{notes}\n\ntable:   {out / name}.md (.tex, .csv, .json)")
    # of what lies in results/ the logits are not kept
    done = [one.folder for one in everything if one.folder.finished() and one.folder.banks("test") and not one.taken]
    if done:
        linked: list[list[str | Cell]] = [[_cell(line[0], everything, out), *line[1:]] for line in cells]
        first = Table(title, caption, headers, linked, notes=[notes], words=headers[:1])
        write_page(front.opened([str(folder.path) for folder in done]), out, first)


def _cell(label: str, everything: list[Experiment], out: Path) -> Cell:
    """A row's label, leading to the manifest of its run at the first seed."""
    runs = [one.folder for one in everything if one.label == label and one.folder.finished()]
    return page.source(runs[0].manifest, out).cell(label) if runs else Cell(label)


def write_page(runs: list[Run], out: Path, table: Table) -> None:
    """The report on all runs of the table, with the table first."""
    found = front.compute(runs, Report(name=out.name))
    front.write(found)
    lead = "Ours from records, published figures as far as anybody could obtain them."
    say(page.write(found, page.read(runs, found), [Section("table", "Table", lead, [table])]))


def entries(one: Experiment, sources: dict[str, Any]) -> reproduction.Run | None:
    """The records of one experiment; what they were read from is noted in `sources`. None before it was judged."""
    manifest = one.folder.read_finished()
    evals = {}
    for name in one.folder.banks("test"):
        path = one.folder.evaluation(one.threshold, "test", name)
        if path.is_file():
            record = read(path, EvalRecord)
            evals[threats.shown(name, one.threshold, record.settings)] = record
            sources[str(path)] = {"sha256": storage.sha256(path), "bank": bank_sha256(one.folder.bank("test", name))}
    worst = one.folder.worst(one.threshold, "test")
    if not evals:
        return None
    sources[str(one.folder.manifest)] = {"sha256": storage.sha256(one.folder.manifest)}
    return reproduction.Run(
        manifest.costs,
        evals,
        read(worst, WorstRecord) if worst.is_file() else None,
        read(one.folder.size, Size) if one.folder.size.is_file() else None,
        manifest.seconds,
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
        found.append(f"{manifest.data.name}, {threats.made(banks)}")
    return "; ".join(dict.fromkeys(found)) or "Nothing was run yet."
