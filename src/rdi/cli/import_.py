"""`rdi import`: weights that were trained elsewhere as a finished run, for attack, evaluate and pareto."""

from __future__ import annotations

from omegaconf import DictConfig

from rdi.cli import _edge
from rdi.runs.importing import import_run


def run(cfg: DictConfig) -> None:
    """Import the file that `cfg` names."""
    _edge.untrained(cfg)
    import_run(_edge.resolved(cfg), _edge.choices())
