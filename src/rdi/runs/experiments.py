"""The experiments that a table of the paper consists of, and which of them are done."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from rdi import threats
from rdi.banks import bank_sha256
from rdi.data import DataSet
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.records import BankManifest, EvalRecord, read
from rdi.report import reproduction
from rdi.runs import datasets, duration, table_specs
from rdi.runs.identity import identity
from rdi.runs.options import Table
from rdi.runs.table_specs import TableSpec

logger = logging.getLogger("rdi")
RESULTS = Path("results")
"""Folder of networks whose rows are taken."""
TABLES_OWN = {
    "run": "runs=FOLDER says where its runs lie",
    "seed": "seeds=[0,1] says which",
    "suite": "its columns are of that suite",
    "stages": "each run is trained, attacked and judged",
}
"""Options that no job of a table is given, and why or what instead."""
Compose = Callable[[Sequence[str]], dict[str, Any]]
"""Options of an `rdi run`, as typed -> its resolved config. Raises UserError for options that do not fit."""


@dataclass(frozen=True)
class Experiment:
    """One cell's worth of work: a row at one seed.

    threshold: name of the exit policy that it is judged by.
    options: of `rdi run`, as they would be typed; compose: makes a config of them.
    turn: how many others come before it, each of which starts from the weights of the one before.
    taken: its folder is one of results/, trained before with these very settings.
    stand_in: the data choice that is taken in place of the row's own.
    """

    label: str
    seed: int
    folder: RunFolder
    threshold: str
    options: tuple[str, ...]
    compose: Compose
    turn: int
    taken: bool = False
    stand_in: str | None = None

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config of the job."""
        return self.compose(self.options)


def one_threat(everything: list[Experiment]) -> None:
    """Raise UserError unless all rows are attacked in one threat model: the figures of two do not compare."""
    first = {one.label: one for one in reversed(everything)}
    radii = {label: threats.configured(one.config["threat"]) for label, one in first.items()}
    if len(set(radii.values())) > 1:
        said = ", ".join(f"{label} {threat.size}" for label, threat in radii.items())
        raise UserError(
            f"the rows are of several threat models, eps: {said}; give one to all, options=['threat.eps=...']"
        )


def taken(one: Experiment) -> Experiment:
    """Return the experiment as it lies finished in results/, judged by the policy deployed with it there; or `one`."""
    if one.folder.started():
        return one
    for path in sorted([*RESULTS.glob("*/manifest.json"), *RESULTS.glob("*/*/manifest.json")]):
        folder = RunFolder(path.parent)
        if folder.finished() and folder.read_finished().identity == identity(one.config):
            return replace(one, folder=folder, threshold=folder.deployed(), taken=True)
    return one


def forecast(missing: list[Experiment]) -> Iterator[str]:
    """Estimate the duration of the missing experiments on this machine, by a short measurement of each row.

    A row counts as trained, and an attack as made, where that is done at every seed.
    """
    data: dict[str, DataSet] = {}
    total = 0.0
    for label in dict.fromkeys(one.label for one in missing):
        mine = [one for one in missing if one.label == label]
        config = mine[0].config
        key = str(config["data"])
        if key not in data:
            data[key] = datasets.source(config).load()
        trained = all(one.folder.finished() for one in mine)
        made = set.intersection(*(set(one.folder.banks("test")) for one in mine))
        found = duration.expected(config, data[key], trained=trained, made=made)
        total += len(mine) * found.total
        times = "" if len(mine) == 1 else f", times {len(mine)} seeds"
        training = "trained"
        if found.steps:
            step = found.training / found.steps
            training = f"about {found.training / 60:,.0f} minutes of training ({found.steps:,} steps of {step:.2g} s)"
        yield f"{label}: {training}, about {found.attacks / 60:,.0f} minutes of attacks{times}"
    if missing:
        yield f"expected on this machine, as busy as it is now: about {total / 60:,.0f} minutes"


def default_profile(spec: TableSpec) -> str:
    """Choose what this machine can do: `fast` with a GPU, else `cpu` where the table has it, else `smoke`."""
    wanted = ("fast", "smoke") if torch.cuda.is_available() else ("cpu", "smoke")
    return next((name for name in wanted if name in spec.profiles), next(iter(spec.profiles)))


def planned(spec: TableSpec, options: Table, profile: str, compose: Compose) -> list[Experiment]:
    """Plan every row at every seed, and what rows start from. Raises UserError for a row that there is not."""
    known = ", ".join(f'"{name}"' for name in spec.rows)  # many have a comma in them
    if options.rows == []:
        raise UserError(f"rows is empty: choose of {known}, or leave it out for all of them")
    if unknown := [name for name in options.rows or () if name not in spec.rows]:
        raise UserError(f'no row "{unknown[0]}" in table {options.name}: choose of {known}')
    runs = table_specs.runs()
    typed = dict(word.split("=", 1) for word in options.options if "=" in word)
    for name, why in TABLES_OWN.items():
        if name in typed:
            raise UserError(f"options: {name} is the table's own ({why}): leave it out")
    root = Path(typed.get("data.root") or os.environ.get("RDI_DATA") or datasets.DEFAULT)
    rows = {label: row.run for label, row in spec.rows.items() if label in (options.rows or spec.rows)}
    wanted = {run: label for label, run in rows.items()}
    for run in list(wanted):
        for before in runs.starts(run):
            wanted.setdefault(before, f"{before}, to start from")
    found = []
    for run, label in wanted.items():
        own = runs.options(run, profile)
        if own is None:
            continue
        instead = runs.stand_in([*own, *options.options], profile, root)
        if instead is not None:
            own = [f"data={instead}" if word.startswith("data=") else word for word in own]
        for seed in options.seeds:

            def path(name: str, seed: int = seed, data: str = f"-{instead}" if instead else "") -> Path:
                return Path(options.runs) / profile / f"{name}{data}-seed{seed}"

            start = runs.runs[run].start
            words = (
                *(word for word in own if not (start and word.startswith("start="))),
                *([f"start={path(start)}"] if start else []),
                "tracking=none",
                f"suite={spec.suite}",
                "stages=[train,attack,evaluate]",
                f"seed={seed}",
                f"run={path(run)}",
                *([f"trust=[{','.join(options.trust)}]"] if options.trust else []),
                *options.options,
            )
            threshold = typed.get("threshold") or dict(word.split("=", 1) for word in own).get("threshold", "entropy")
            folder, turn = RunFolder(path(run)), len(runs.starts(run))
            found.append(Experiment(label, seed, folder, threshold, words, compose, turn, False, instead))
    return found


def finished(one: Experiment, spec: TableSpec) -> bool:
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


def bank_names(spec: TableSpec, exits: int) -> list[str]:
    """Return the names of the banks behind the columns of a table."""
    found = ["clean"]
    for name in spec.attacks:
        found += [f"{reproduction.SINGLE}{k}" for k in range(exits)] if name == "single" else [name]
    return found
