"""`rdi export`: a run as files for a device, one per stage, with the exit policy and a runner that needs no torch."""

from __future__ import annotations

from omegaconf import DictConfig

from rdi.cli import _edge
from rdi.cli._console import say
from rdi.runs.export import export_run
from rdi.runs.options import Export


def run(cfg: DictConfig) -> None:
    """Export the run that `cfg` names and say how well the export agrees with the network."""
    opened, options = _edge.opened(cfg), _edge.options(cfg, Export)
    with opened.hold():
        made = export_run(opened, options)
    say(made.text())
