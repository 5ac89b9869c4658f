"""`rdi bench`: measure attacks, training and inference on this machine, as ratios to plain baselines."""

from __future__ import annotations

from omegaconf import DictConfig

from rdi.cli import _edge
from rdi.cli._console import say
from rdi.runs.bench import measure_all, settle
from rdi.runs.options import Bench


def run(cfg: DictConfig) -> None:
    """Measure what `cfg` asks for, print the tables and store the record."""
    _edge.untrained(cfg)
    options, config = _edge.options(cfg, Bench), _edge.resolved(cfg)
    settle(options, {word.split("=")[0].lstrip("+~") for word in _edge.overrides()})
    opened = None if options.run is None else _edge.opened(cfg)
    say(measure_all(options, config, _edge.choices(), opened))
