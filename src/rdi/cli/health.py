"""`rdi health`: check the evaluation of a run itself, line by line, green or red."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from rdi.cli import _edge
from rdi.cli._console import say
from rdi.report.health import render
from rdi.runs.health import check_run, hurry, record_file
from rdi.runs.options import Health


def run(cfg: DictConfig) -> None:
    """Check the run that `cfg` names, print the table and store the record.

    Ends with exit status 1 when a line is red and strict=true.
    """
    opened = _edge.opened(cfg)
    _edge.fill_threat(cfg, opened)
    options = _edge.options(cfg, Health)
    hurry(options, {word.split("=")[0].lstrip("+") for word in _edge.overrides()})
    with opened.hold():
        record = check_run(opened, options)
    path = record_file(opened, record)
    say(f"\n{render(record, colour=sys.stdout.isatty())}\n\nrecord: {path}")
    if options.strict and not all(check.passed for check in record.checks):
        raise SystemExit(1)
