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
        made = export_run(
            opened, format=options.format, thresholds=options.thresholds, samples=options.samples, out=options.out
        )
    parity = made.parity
    say(
        f"{made.folder}: {parity['labels_and_exits_equal']} of {parity['images']} test images with the label and exit "
        f"of the network, largest difference of a logit {parity['largest_logit_difference']:.2g}\n"
        f"{len(parity['near_threshold'])} images within {parity['near']:g} of a threshold; "
        f"{len(parity['unexplained'])} differ without being near one\n"
        f"Next: cd {made.folder} && python runner.py"
    )
