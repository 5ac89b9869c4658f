"""`rdi table`: run what a table of the paper consists of, and lay it out beside the published figures."""

from __future__ import annotations

from omegaconf import DictConfig

from rdi.cli import _edge, _jobs
from rdi.cli._console import say_all
from rdi.runs.options import Table
from rdi.runs.table import run_table


def run(cfg: DictConfig) -> None:
    """Run what is missing of the table that `cfg` names, and print it."""
    say_all(run_table(_edge.options(cfg, Table), _jobs.config, _jobs.launch))
