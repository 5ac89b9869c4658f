"""`rdi list`: which runs there are, in which state, what sets them apart, and their headline figures."""

from __future__ import annotations

from omegaconf import DictConfig

from rdi import listing
from rdi.checks import choice
from rdi.cli import _edge
from rdi.errors import UserError
from rdi.report import listed, tables
from rdi.runs import names
from rdi.runs.options import List


def run(cfg: DictConfig) -> None:
    """Print the runs that `cfg` names."""
    options = _edge.options(cfg, List)
    by = choice("sort", options.sort, listed.SORTS)
    runs = listed.ordered([listing.read_run(path) for path in names.folders(options.runs)], by)
    if not runs:
        if names.HOME.exists() and not names.HOME.is_dir():
            raise UserError(f"{names.HOME} is a file where the folder of runs belongs: move it away")
        where = ", ".join(options.runs) or "[]"
        raise UserError(f"no runs in {where}: `rdi run run=runs/demo` makes one, runs=[FOLDER,...] lists others")
    if options.csv:
        print(tables.comma_separated(listed.rows(runs)), end="")
    else:
        print("\n".join(listed.table(runs)))
