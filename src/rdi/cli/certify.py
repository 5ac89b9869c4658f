"""`rdi certify`: bound what any attack can do to a finished run under an exit policy."""

from __future__ import annotations

from omegaconf import DictConfig

from rdi.checks import choice, integer, number
from rdi.cli import _edge, _hydra
from rdi.cli._console import say
from rdi.cli._outcome import Outcome
from rdi.report.certificates import lines
from rdi.runs.certify import Making, certify_run
from rdi.runs.folder import Run
from rdi.threats import Threat, trained


def run(cfg: DictConfig) -> Outcome:
    """Certify the run that `cfg` names and print what came of it."""
    opened = Run.open(cfg.run, cfg.device, threads=cfg.threads)
    config = _edge.resolved(cfg)
    eps = config["threat"]["eps"]
    threat = trained(opened.manifest) if eps is None else Threat(number("threat.eps", eps, 0, 1))
    how = Making(
        batch_size=integer("batch_size", config["batch_size"], 1),
        linear=config["linear"],
        overwrite=config["overwrite"],
    )
    split = choice("split", config["split"], ("test", "validation"))
    opened.data_root = _edge.typed_root(config)
    with opened.folder.hold():
        _hydra.log_to(opened.folder.log)
        opened.load()
        record = certify_run(
            opened, threat, how, samples=config["samples"], split=split, thresholds=config["thresholds"]
        )
    say(f"\n{opened.folder.path}: {lines(record, opened.manifest.costs)}")
    return Outcome(str(opened.folder.path), skipped=False)
