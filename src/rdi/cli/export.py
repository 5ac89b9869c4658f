"""`rdi export`: a run as files for a device, one per stage, with the exit policy and a runner that needs no torch."""

from __future__ import annotations

from omegaconf import DictConfig

from rdi.cli import _edge, _hydra
from rdi.cli._console import say
from rdi.runs.export import export_run
from rdi.runs.folder import Run


def run(cfg: DictConfig) -> None:
    """Export the run that `cfg` names and say how well the export agrees with the network."""
    config = _edge.resolved(cfg)
    opened = Run.open(config["run"], config["device"], threads=config["threads"])
    opened.data_root = _edge.typed_root(config)
    with opened.folder.hold():
        _hydra.log_to(opened.folder.log)
        made = export_run(
            opened,
            format=config["format"],
            thresholds=config["thresholds"],
            samples=config["samples"],
            out=config["out"],
        )
    parity = made.parity
    say(
        f"{made.folder}: {parity['labels_and_exits_equal']} of {parity['images']} test images with the label and exit "
        f"of the network, largest difference of a logit {parity['largest_logit_difference']:.2g}\n"
        f"{len(parity['near_threshold'])} images within {parity['near']:g} of a threshold; "
        f"{len(parity['unexplained'])} differ without being near one\n"
        f"Next: cd {made.folder} && python runner.py"
    )
