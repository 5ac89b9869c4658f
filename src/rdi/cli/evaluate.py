"""`rdi evaluate`: judge the stored logits of a run under an exit policy."""

from __future__ import annotations

from omegaconf import DictConfig

from rdi.cli import _edge
from rdi.cli._console import say
from rdi.runs import verdict
from rdi.runs.options import Evaluate
from rdi.runs.outcome import Outcome


def run(cfg: DictConfig) -> Outcome:
    """Evaluate the run that `cfg` names and print the tables."""
    opened, options = _edge.opened(cfg), _edge.options(cfg, Evaluate)
    with opened.hold():
        thresholds = verdict.thresholds(opened, options, _edge.choices().get("threshold"), typed=_edge.typed_rule())
        found = verdict.evaluate(opened, thresholds, options)
    say(verdict.text(opened, thresholds, found, options.split))
    return verdict.outcome(opened, found)
