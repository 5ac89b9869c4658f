"""`rdi certify`: bound what any attack can do to a finished run under an exit policy."""

from __future__ import annotations

from omegaconf import DictConfig

from rdi.cli import _edge
from rdi.cli._console import say
from rdi.report.certificates import lines
from rdi.runs.certify import certify_run
from rdi.runs.options import Certify
from rdi.runs.outcome import Outcome


def run(cfg: DictConfig) -> Outcome:
    """Certify the run that `cfg` names and print what came of it."""
    opened, options = _edge.opened(cfg), _edge.options(cfg, Certify)
    with opened.hold():
        record = certify_run(opened.load(), options)
    say(f"\n{opened.path}: {lines(record, opened.manifest.costs)}")
    return Outcome(str(opened.path), skipped=False)
