"""Export a finished run: stage files, policy, parity with the network on the run's own test images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdi.checks import choice, directory
from rdi.exporting import write
from rdi.exporting.stages import FORMATS
from rdi.runs.folder import Run


@dataclass(frozen=True)
class Exported:
    """Hold where an export lies and the content of its parity.json."""

    folder: Path
    parity: dict[str, Any]


def export_run(run: Run, *, format: str, thresholds: str | None, samples: int | None, out: str | None) -> Exported:
    """Export the network of a run with one of its stored exit policies, compared on its test images.

    format: "onnx" or "torch".
    thresholds: name of the policy; None: the one that the run was trained with.
    samples: test images to compare on, None: all.
    out: the folder to write; None: exports/FORMAT in the run folder.
    Raises UserError for what is missing, damaged or cannot be exported.
    """
    choice("format", format, tuple(FORMATS))
    folder = run.path / "exports" / format if out is None else directory("out", out)
    write.refuse_foreign(folder)
    manifest = run.manifest
    name = thresholds or manifest.choices["threshold"]
    policy = run.policy(name)
    images = run.data.test.sample(samples).images[:]
    found = write.export(
        run.network,
        policy,
        images,
        folder,
        format=format,
        class_names=manifest.data.class_names,
        origin={
            "run": run.folder.name,
            "identity": manifest.identity,
            "checkpoint_sha256": manifest.checkpoint_sha256,
            "thresholds": name,
            "backbone": manifest.choices["backbone"],
            "data": manifest.data.name,
        },
    )
    return Exported(folder, found)
