"""`rdi pareto`: operating points of one or more runs, their front, as table, CSV and picture."""

from __future__ import annotations

from omegaconf import DictConfig

from rdi.cli import _edge
from rdi.cli._console import say
from rdi.runs import front
from rdi.runs.names import run_folders
from rdi.runs.options import Pareto


def run(cfg: DictConfig) -> None:
    """Draw the front of the runs that `cfg` names."""
    options = _edge.options(cfg, Pareto)
    say(front.text(front.draw(front.named(run_folders(options.runs)), options)))
