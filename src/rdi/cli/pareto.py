"""`rdi pareto`: operating points of one or more runs, their front, as table, CSV and picture."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from rdi import curves, evaluating, pareto, records
from rdi.banks import LogitsBank, bank_sha256
from rdi.checks import integer
from rdi.cli import _edge, _stages
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.report import plots, tables
from rdi.thresholds import Bank
from rdi.tracking import Tracking

logger = logging.getLogger("rdi")
RATIO_RANGE = (-1.2, 1.2)  # powers of ten: from 94 % of the images at the first exit to 94 % at the last
COLUMNS = ("run", "ratio", "clean_accuracy", "worst_accuracy", "mean_macs", "mean_macs_paper")


def run(cfg: DictConfig) -> None:
    """Draw the front of the runs that `cfg` names."""
    config = _edge.resolved(cfg)
    draw([RunFolder(path) for path in config["runs"]], config)


def draw(folders: list[RunFolder], config: dict[str, Any]) -> None:
    """Write points.csv, front.csv, table.md, front.png, curves.csv, curves.png, sources.json, and say where."""
    if not folders:
        raise UserError("runs is empty: give runs=[runs/a,runs/b]")
    tracking: Tracking = _edge.build(config["tracking"])
    ratios = np.logspace(*RATIO_RANGE, integer("ratios", config["ratios"], 2))
    points, curve_points, sources = [], [], []
    for folder in folders:
        mine, source = operating_points(folder, ratios)
        points += mine
        curve_points += curve_rows(folder, ratios)
        sources.append(source)
    has_worst = all(point["worst_accuracy"] is not None for point in points)
    if not has_worst and any(point["worst_accuracy"] is not None for point in points):
        missing = next(point["run"] for point in points if point["worst_accuracy"] is None)
        raise UserError(f"{missing} was not attacked, the others were: run `rdi attack` on it first")
    keys = ("clean_accuracy", *(("worst_accuracy",) if has_worst else ()), "mean_macs")
    values = np.array([[point[key] for key in keys] for point in points], dtype=float)
    for point, kept in zip(points, pareto.non_dominated(values, (*[True] * (len(keys) - 1), False)), strict=True):
        point["on_front"] = bool(kept)
    front = sorted((p for p in points if p["on_front"]), key=lambda p: p["mean_macs"])
    out = Path("reports") / (config["name"] or folders[0].name)
    headers, rows = table(front)
    conditions = "; ".join(source["conditions"] for source in sources)
    picture = plots.front(points, conditions)
    contents = {
        "points.csv": tables.comma_separated(points).encode(),
        "front.csv": tables.comma_separated(front).encode(),
        "table.md": f"{conditions}\n\n{tables.text(headers, rows, 'github')}\n".encode(),
        "front.png": picture,
        "curves.csv": tables.comma_separated(curve_points).encode(),
        "curves.png": plots.curves(curve_points, conditions),
    }
    for name, content in contents.items():
        records.atomic(out / name, lambda stream, content=content: stream.write(content))  # type: ignore[misc]
    records.write(out / "sources.json", {"runs": sources, "ratios": ratios.tolist()})
    with tracking.start(out, "pareto", {"runs": [str(folder.path) for folder in folders]}) as log:
        log.table("points", [*COLUMNS, "on_front"], [[p[c] for c in (*COLUMNS, "on_front")] for p in points])
        log.summary({"points": len(points), "points_on_front": len(front)})
    print(f"\nfront: {len(front)} of {len(points)} operating points ({conditions})")
    shown = front[:: max(1, len(front) // 8)]
    print(tables.text(*table(shown)))
    print(f"\npicture: {out / 'front.png'}\ntable:   {out / 'table.md'}\npoints:  {out / 'points.csv'}")
    print(f"curves:  {out / 'curves.png'}, {out / 'curves.csv'}")


def operating_points(folder: RunFolder, ratios: np.ndarray) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows for points.csv, and what they were made from. Raises UserError when banks are missing."""
    manifest = folder.read_finished()
    banks = {name: LogitsBank.load(path) for name, path in folder.banks("test").items()}
    if _stages.CLEAN not in banks:
        raise UserError(f"{folder.path} was not attacked: run `rdi attack run={folder.path}` first")
    attacked = _stages.attacked_banks(banks)
    calibration = LogitsBank.load(folder.bank("calibration", _stages.CLEAN))
    clean = banks[_stages.CLEAN]
    found = evaluating.sweep(
        calibration.logits,
        (clean.logits, clean.labels),
        [(bank.logits, bank.labels) for bank in attacked.values()],
        _edge.build(score_node(manifest.config["threshold"])),
        manifest.costs,
        ratios,
    )
    rows = [
        {
            "run": folder.name,
            "ratio": point.ratio,
            "clean_accuracy": point.clean_accuracy,
            "worst_accuracy": point.worst_accuracy,
            "mean_macs": point.mean_macs,
            "mean_macs_paper": point.mean_macs_paper,
            "macs_plain": manifest.costs.macs_plain,
            "thresholds": " ".join(f"{value:.6g}" for value in point.values),
            "on_front": False,
        }
        for point in found
    ]
    images = next(iter(attacked.values())).manifest.samples if attacked else 0
    source = {
        "run": str(folder.path),
        "conditions": (
            f"{manifest.choices['backbone']} on {manifest.data.name}, {clean.manifest.samples} clean images, worst of "
            f"{len(attacked)} attacks on {images}, eps {manifest.config['threat']['eps']:.3g}, seed {manifest.seed}"
        ),
        "identity": manifest.identity,
        "checkpoint_sha256": manifest.checkpoint_sha256,
        "score": score_node(manifest.config["threshold"]),
        "banks": {str(path): bank_sha256(path) for path in folder.banks("test").values()},
    }
    return rows, source


def curve_rows(folder: RunFolder, ratios: np.ndarray) -> list[dict[str, Any]]:
    """Rows for curves.csv: each exit alone, and by thresholds, under every attack and in the worst case."""
    manifest = folder.read_finished()
    loaded = {name: LogitsBank.load(path) for name, path in folder.banks("test").items()}
    banks = {name: Bank(bank.logits, bank.labels) for name, bank in loaded.items()}
    calibration = LogitsBank.load(folder.bank("calibration", _stages.CLEAN))
    score = _edge.build(score_node(manifest.config["threshold"]))
    costs = manifest.costs
    found = curves.anytime(banks, costs) + curves.budgeted(calibration.logits, banks, score, costs, ratios)
    plain = {"macs_plain": costs.macs_plain, "macs_plain_paper": costs.macs_plain_paper}
    return [{"run": folder.name, **asdict(point), **plain} for point in found]


def score_node(rule: dict[str, Any]) -> dict[str, Any]:
    """The score of a threshold rule's node, or of the rule in it; entropy for a rule without one."""
    while "rule" in rule:
        rule = rule["rule"]
    return rule.get("score", {"_target_": "rdi.thresholds.Entropy"})


def table(points: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the front."""
    headers = ["run", "clean %", "worst case %", "MACs (M)", "saved %", "paper MACs (M)"]
    rows = [
        [
            point["run"],
            tables.percent(point["clean_accuracy"]),
            "-" if point["worst_accuracy"] is None else tables.percent(point["worst_accuracy"]),
            f"{point['mean_macs'] / 1e6:.2f}",
            tables.percent(1 - point["mean_macs"] / point["macs_plain"]),
            f"{point['mean_macs_paper'] / 1e6:.2f}",
        ]
        for point in points
    ]
    return headers, rows
