"""Export a finished run: stage files, policy, parity with the network on the run's own test images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdi.checks import choice, directory, integer
from rdi.exporting import write
from rdi.exporting.precision import PRECISIONS
from rdi.exporting.runner import Runner
from rdi.exporting.stages import FORMATS
from rdi.locks import hold
from rdi.runs.folder import Run
from rdi.runs.options import Export
from rdi.runs.rejudging import rejudged


@dataclass(frozen=True)
class Exported:
    """Hold where an export lies and the content of its parity.json."""

    folder: Path
    parity: dict[str, Any]


def export_run(run: Run, options: Export) -> Exported:
    """Export the network of a run with one of its stored exit policies, compared on its test images.

    In another precision than float32 the export is judged too, as rdi.runs.rejudging does.

    Raises UserError for what is missing, damaged or cannot be exported.
    """
    format = choice("format", options.format, tuple(FORMATS))
    precision = choice("precision", options.precision, PRECISIONS)
    integer("attacked", options.attacked, 1)
    name = format if precision == "float32" else f"{format}-{precision}"
    folder = run.path / "exports" / name if options.out is None else directory("out", options.out)
    write.refuse_foreign(folder)
    if options.out is not None:
        with hold(folder):  # found before the work: a place where nothing can be written
            pass
    manifest = run.manifest
    name = options.thresholds or manifest.choices["threshold"]
    policy = run.policy(name)
    split = run.data.test.sample(options.samples)

    def judge(runner: Runner, clean: dict[str, Any]) -> dict[str, Any]:
        return rejudged(run, policy, runner, clean, split, options.attacked)

    found = write.export(
        run.network,
        policy,
        split.images[:],
        folder,
        format=format,
        precision=precision,
        calibration=run.data.calibration.images[:],
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
