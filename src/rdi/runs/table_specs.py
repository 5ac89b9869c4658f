"""Read the specifications of tables strictly: sweeps/tables/_runs.yaml and sweeps/tables/NAME.yaml."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from rdi.checks import choice
from rdi.errors import UserError
from rdi.packaged import packaged
from rdi.records import STRICT
from rdi.report.reproduction import EXTRA


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunSpec:
    """One training. options: what sets it apart from the others of its recipe, as typed; start: run it compresses."""

    recipe: str
    options: list[str]
    start: str | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StandIn:
    """Data for a machine that has not got others. missing: what their folder lacks then; data: the choice instead."""

    missing: str
    data: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Runs:
    """The trainings that tables are made of.

    recipes: network -> profile -> options.
    runs: name -> training.
    stand_ins: profile -> data choice -> substitute where the data are missing.
    """

    recipes: dict[str, dict[str, list[str]]]
    runs: dict[str, RunSpec]
    stand_ins: dict[str, dict[str, StandIn]] = field(default_factory=dict)

    def options(self, run: str, profile: str) -> list[str] | None:
        """Return the options of a run under a profile, each once, with its last value; None without such a recipe.

        Hydra refuses to be told a group twice.
        """
        spec = self.runs[run]
        if profile not in self.recipes[spec.recipe]:
            return None
        words = [*self.recipes[spec.recipe][profile], *spec.options]
        return list({word.partition("=")[0]: word for word in words}.values())

    def starts(self, run: str) -> list[str]:
        """Return the runs whose weights a run begins with, nearest first."""
        start = self.runs[run].start
        return [] if start is None else [start, *self.starts(start)]

    def stand_in(self, options: Sequence[str], profile: str, root: Path) -> str | None:
        """Return the data choice that stands in for that of the options; None where those are there."""
        typed = dict(word.split("=", 1) for word in options if "=" in word)
        found = self.stand_ins.get(profile, {}).get(typed.get("data", ""))
        return None if found is None or (root / found.missing).exists() else found.data


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RowSpec:
    """One experiment of a table. run: its name in sweeps/tables/_runs.yaml; published: column -> percent."""

    run: str
    published: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TableSpec:
    """A table.

    title: "{data}" in it stands for the data of the experiments.
    suite: of the attacks; attacks: accuracy columns besides clean and worst, "single" stands for every exit.
    rows: label -> experiment.
    extra: further columns, of rdi.report.reproduction.EXTRA.
    source: of published figures.
    profiles: name -> what it does and how long it takes, in words.
    """

    title: str
    suite: str
    attacks: list[str]
    rows: dict[str, RowSpec]
    source: str
    profiles: dict[str, str]
    extra: list[str] = field(default_factory=list)


Spec = TypeVar("Spec")


def folder() -> Path:
    """Return the folder of sweeps and tables."""
    return packaged("sweeps")


def table(name: str) -> TableSpec:
    """Read the table `name`. Raises UserError when there is none, or its file is not as it should be."""
    path = folder() / "tables" / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"no table {name!r}: name=... is one of {', '.join(tables())}")
    found = _read(path, TableSpec)
    if unknown := [row.run for row in found.rows.values() if row.run not in runs().runs]:
        raise UserError(f"{path}: there is no run {unknown[0]!r} in {folder() / 'tables' / '_runs.yaml'}")
    for name in found.extra:
        choice(f"{path}: extra", name, tuple(EXTRA))
    return found


def tables() -> list[str]:
    """Return the names of all tables."""
    return sorted(path.stem for path in (folder() / "tables").glob("[!_]*.yaml"))


def runs() -> Runs:
    """Read what the tables are made of."""
    path = folder() / "tables" / "_runs.yaml"
    found = _read(path, Runs)
    if unknown := [spec.recipe for spec in found.runs.values() if spec.recipe not in found.recipes]:
        raise UserError(f"{path}: there is no recipe {unknown[0]!r}")
    return found


class _Unique(yaml.SafeLoader):
    """YAML whose mappings have every key once; the safe loader keeps the last of two without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping. Raises YAMLError for a key that is there twice."""
        seen: list[Any] = []
        for key, _ in node.value:
            if (name := self.construct_object(key, deep=True)) in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {name!r} stands twice")
            seen.append(name)
        return super().construct_mapping(node, deep)


def _read(path: Path, kind: type[Spec]) -> Spec:
    try:
        content = json.dumps(yaml.load(path.read_text(encoding="utf-8"), _Unique))
        return TypeAdapter(kind).validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {str(error).splitlines()[0]}") from error
