"""Export a finished run: stage files, policy, parity with the network on the run's own test images."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from rdi.checks import choice, directory, integer
from rdi.data import DataSet
from rdi.errors import UserError
from rdi.exporting import write
from rdi.exporting.precision import PRECISIONS
from rdi.exporting.runner import Runner
from rdi.exporting.stages import FORMATS
from rdi.locks import hold
from rdi.runs.folder import Run
from rdi.runs.options import Export
from rdi.runs.rejudging import rejudged

RANGES = 2**25
"""Numbers in the images, at most, that the ranges of int8 are taken from; the features of all of them are held."""


@dataclass(frozen=True)
class Exported:
    """Hold where an export lies and the content of its parity.json."""

    folder: Path
    parity: dict[str, Any]

    def text(self) -> str:
        """Say how well the export agrees with the network, and what to do with it."""
        parity = self.parity
        return (
            f"{self.folder}: {parity['labels_and_exits_equal']} of {parity['images']} test images with the label and "
            f"exit of the network, largest difference of a logit {parity['largest_logit_difference']:.2g}\n"
            f"{len(parity['near_threshold'])} images within {parity['near']:g} of a threshold; "
            f"{len(parity['unexplained'])} differ without being near one\n"
            + judged(parity)
            + f"Next: cd {self.folder} && python runner.py"
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


def _ranges(data: DataSet) -> torch.Tensor:
    """Return the calibration images, or a random sample of them where they would fill the memory."""
    split = data.calibration
    return split.sample(max(1, RANGES // prod(data.shape))).images[:]


def export_run(run: Run, options: Export) -> Exported:
    """Export the network of a run with one of its stored exit policies, compared on its test images.

    In another precision than float32 the export is judged too, as rdi.runs.rejudging does.

    Raises UserError for what is missing, damaged or cannot be exported.
    """
    format = choice("format", options.format, tuple(FORMATS))
    precision = choice("precision", options.precision, PRECISIONS)
    if integer("attacked", options.attacked, 1) != Export.attacked and precision == "float32":
        raise UserError("attacked is for precision=bf16 and int8, which are judged anew: leave it out")
    own = run.manifest.choices["threshold"]
    name = options.thresholds or own
    kind = "-".join([format, *([] if precision == "float32" else [precision]), *([] if name == own else [name])])
    folder = run.path / "exports" / kind if options.out is None else directory("out", options.out)
    write.refuse_foreign(folder)
    if options.out is not None:
        with hold(folder):  # found before the work: a place where nothing can be written
            pass
    manifest, policy = run.manifest, run.policy(name)
    split = run.data.test.sample(options.samples)

    def judge(runner: Runner, clean: dict[str, Any]) -> dict[str, Any]:
        return rejudged(run, policy, runner, clean, split, options.attacked)

    found = write.export(
        run.network,
        policy,
        split.images,
        folder,
        format=format,
        precision=precision,
        calibration=_ranges(run.data) if precision == "int8" else None,
        single=options.single,
        judge=None if precision == "float32" else judge,
        class_names=manifest.data.class_names,
        origin={
            "run": run.folder.name,
            "identity": manifest.identity,
            "checkpoint_sha256": manifest.checkpoint_sha256,
            "thresholds": name,
            "backbone": manifest.backbone,
            "data": manifest.data.name,
        },
    )
    return Exported(folder, found)
