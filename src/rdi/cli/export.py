"""`rdi export`: a run as files for a device, one per stage, with the exit policy and a runner that needs no torch."""

from __future__ import annotations

from typing import Any

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
    parity = made.parity
    say(
        f"{made.folder}: {parity['labels_and_exits_equal']} of {parity['images']} test images with the label and exit "
        f"of the network, largest difference of a logit {parity['largest_logit_difference']:.2g}\n"
        f"{len(parity['near_threshold'])} images within {parity['near']:g} of a threshold; "
        f"{len(parity['unexplained'])} differ without being near one\n"
        + judged(parity)
        + f"Next: cd {made.folder} && python runner.py"
    )


def judged(parity: dict[str, Any]) -> str:
    """Say how accurate an export in another precision is, beside the network in float32; nothing for one in float32."""
    if "judged" not in parity:
        return ""
    clean, worst, certified = (parity["judged"][part] for part in ("clean", "worst_case", "certified"))
    lines = [
        f"{parity['precision']} is another network, judged anew (in brackets: the network in float32)",
        f"clean accuracy {_percent(clean)} on {clean['images']} images, {clean['mean_macs'] / 1e6:.2f} M MACs each",
    ]
    if worst["images"]:
        lines += [
            f"right under all of {', '.join(worst['attacks'])}: {_percent(worst)} on {worst['images']} images",
            f"({worst['says']})",
        ]
    else:
        lines.append("worst case: not measured, the run has no attack that could be crafted again")
    if worst["left_out"]:
        lines.append(f"not crafted again: {', '.join(worst['left_out'])}")
    return "".join(f"{line}\n" for line in [*lines, f"certified accuracy: {certified['says']}"])


def _percent(figures: dict[str, Any]) -> str:
    return f"{100 * figures['accuracy']:.1f} % ({100 * figures['of_the_network']:.1f} %)"
