"""`rdi report`: one page on one or more finished, attacked and evaluated runs, that opens without a network."""

from __future__ import annotations

from omegaconf import DictConfig

from rdi.cli import _edge
from rdi.cli._console import say
from rdi.runs import front, page
from rdi.runs.names import run_folders
from rdi.runs.options import Report


def run(cfg: DictConfig) -> None:
    """Write the report on the runs that `cfg` names."""
    options = _edge.options(cfg, Report)
    runs = front.opened(run_folders(options.runs))
    found = front.compute(runs, options)
    # read before anything is written: a mistake leaves no half a report
    views = page.read(runs, found)
    front.write(found)
    say(page.write(found, views))
