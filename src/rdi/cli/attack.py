"""`rdi attack`: attack a finished run with a suite, or with one attack, and store every exit's logits."""

from __future__ import annotations

from omegaconf import DictConfig

from rdi.cli import _edge
from rdi.runs import corruptions
from rdi.runs.attack import attack_run, build_suite
from rdi.runs.options import Attack
from rdi.runs.outcome import Outcome


def run(cfg: DictConfig) -> Outcome:
    """Attack the run that `cfg` names."""
    opened = _edge.opened(cfg)
    _edge.fill_threat(cfg, opened)
    of_file = "threat" in _edge.choices()  # else the radius was the run's, which fill_threat has looked at
    words = [word for word in _edge.overrides() if of_file or not word.startswith("threat.")]
    _edge.refuse_foreign_radius(cfg, words)
    options = _edge.options(cfg, Attack)
    with opened.hold():
        if options.corruption is not None:
            corruptions.refuse_unused(_edge.overrides())
            corruptions.corrupt_run(opened, options)
        elif options.attack is None:
            attack_run(opened, build_suite(options.suite), options)
        else:
            one = build_suite({_edge.choices()["attack"]: options.attack}, single=True)
            attack_run(opened, one, options)
    return Outcome(str(opened.path), skipped=False)
