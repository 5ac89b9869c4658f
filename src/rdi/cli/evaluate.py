"""`rdi evaluate`: judge the stored logits of a run under an exit policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rdi import checks
from rdi.cli import _assemble, _edge, _hydra, _judging
from rdi.config import build
from rdi.evaluating import early_exit_curve, efficacy
from rdi.folders import RunFolder
from rdi.records import EvalRecord, Manifest, Size, Thresholds, WorstRecord, atomic, read
from rdi.report import sizes, suites, tables
from rdi.tracking import Tracking

JUDGED = ("test", "validation")
"""Splits that neither weights nor thresholds were made from."""


def run(cfg: DictConfig) -> None:
    """Evaluate the run that `cfg` names and print the table."""
    config = _edge.resolved(cfg)
    folder = RunFolder(config["run"])
    folder.read_finished()
    with folder.hold():
        evaluate(folder, config, _edge.choices()["threshold"])


def evaluate(folder: RunFolder, config: dict[str, Any], choice: str) -> tuple[list[EvalRecord], WorstRecord | None]:
    """Fit the thresholds of `config`, judge every bank of its split, store the records, print the table.

    Returns the records. Raises UserError for a split without banks.
    """
    split = checks.choice("split", config["split"], JUDGED)
    manifest = folder.read_finished()
    _hydra.log_to(folder.log)
    name = _judging.threshold_name(choice, config["threshold"])
    tracking: Tracking = build(config["tracking"], "tracking")
    thresholds = _judging.fit_thresholds(folder, build(config["threshold"], "threshold"), name, config["threshold"])
    records, worst = _judging.evaluate(folder, thresholds, split)
    headers, rows = tables.evaluation_rows(records, worst)
    print(heading(folder, manifest, thresholds, split))
    print(tables.text(headers, rows))
    print(footnote(manifest))
    if folder.size.is_file():
        print(
            f"compressed ({manifest.choices['compression']}): {sizes.describe(read(folder.size, Size), manifest.costs)}"
        )
    if split == "test":
        for line in tables.promises(thresholds.expected, records):
            print(line)
    if worst is not None and worst.transfer is not None:
        print(f"\nhow images made against one exit fare at the others:\n\n{suites.transfer(worst.transfer)}")
    print(f"\nearly-exit curves: {draw_curves(folder, manifest, records)}")
    with tracking.start(folder.path, "evaluate", manifest.config) as log:
        named = "" if split == "test" else f"{split}/"
        log.summary({f"{named}{key}": value for key, value in summary(records, worst).items()})
        log.table(f"{named}evaluation", headers, rows)
    return records, worst


def draw_curves(folder: RunFolder, manifest: Manifest, judged: list[EvalRecord]) -> Path:
    """Draw how early-exiting survives each attack, beside the records; where the picture lies."""
    curves = {
        record.attack.split("@")[0]: (
            early_exit_curve(record.exit_share, manifest.costs.macs),
            efficacy(record.exit_share, manifest.costs.macs),
        )
        for record in judged
    }
    title = f"{manifest.choices['backbone']} on {manifest.data.name}, exit policy {judged[0].threshold}"
    path = folder.early_exit(judged[0].threshold, judged[0].split)
    for kind, drawing in suites.early_exit(curves, title).items():
        atomic(path.with_suffix(f".{kind}"), lambda stream, drawing=drawing: stream.write(drawing))  # type: ignore[misc]
    return path


def heading(folder: RunFolder, manifest: Manifest, thresholds: Thresholds, split: str) -> str:
    """What the table is about: data, attack strength, exit policy and what the fit says of it."""
    threat = manifest.config["threat"]
    images = "" if split == "test" else f" ({split} images, held out of training)"
    facts = "; ".join(f"{key} {tables.plain(value)}" for key, value in thresholds.facts.items())
    return (
        f"\n{folder.path}: {manifest.choices['backbone']} on {manifest.data.name}{images}, "
        f"L-infinity eps {threat['eps']:.4g}, seed {manifest.seed}\n"
        f"exit policy {thresholds.name}, fitted on {thresholds.samples} calibration images: "
        f"{_assemble.policy(thresholds)}\n{facts + chr(10) if facts else ''}"
    )


def footnote(manifest: Manifest) -> str:
    """How cost and saving are counted."""
    return (
        "exit 0 is the first. MACs: mean per image, every head on the way, convolutions and linear; saved against"
        f"\nthe backbone without exits ({manifest.costs.macs_plain / 1e6:.2f} M; an image that goes to the end costs "
        f"{manifest.costs.macs[-1] / 1e6:.2f} M). Paper MACs: own head only, convolutions only."
    )


def summary(records: list[EvalRecord], worst: WorstRecord | None) -> dict[str, float]:
    """Scalars for tracking."""
    values: dict[str, float] = {}
    for record in records:
        values |= {
            f"{record.attack}/accuracy": record.accuracy,
            f"{record.attack}/mean_macs": record.mean_macs,
            f"{record.attack}/efficacy": record.efficacy or 0.0,
        }
    if worst is not None:
        values["worst/accuracy"] = worst.accuracy
    return values
