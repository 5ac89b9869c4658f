"""Operating points of one run: its thresholds for a series of exit shares, judged by everything that the run holds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np

from rdi import curves, evaluating
from rdi.banks import CLEAN, bank_sha256
from rdi.config import build
from rdi.curves import CurvePoint
from rdi.errors import UserError
from rdi.runs import certify, corruptions, stored
from rdi.runs.evaluate import network_banks
from rdi.runs.folder import Run
from rdi.runs.points_index import PointsIndex
from rdi.storage import sha256
from rdi.threats import ThreatModel, caption, trained
from rdi.threats import threat as threat_of
from rdi.thresholds import Bank, ThresholdPolicy
from rdi.trust import NO_PLUGINS, targets

logger = logging.getLogger("rdi")
COLUMNS = ("certified_accuracy", "certified_macs", "certified_images", "corruption_accuracy", "corruption_images")
"""Columns of points.csv that a run need not have: a front without any such run has none of them."""


@dataclass(frozen=True)
class Points:
    """Operating points of one run.

    rows: of points.csv, without the name of the run and on_front.
    source: what they were made from.
    curves: columns that the rows of curves.csv share, and the points of these.
    """

    rows: list[dict[str, Any]]
    source: dict[str, Any]
    curves: tuple[dict[str, Any], list[CurvePoint]]


@dataclass(frozen=True)
class Facts:
    """Facts of a run that decide what it can be compared with.

    own: the threat model that the run was trained for. attacked: those that it was attacked in.
    corrupted: what its corrupted images are, in words; empty where there are none.
    macs: of the whole network with all heads. group: that its tracking is put under.
    """

    own: ThreatModel
    attacked: frozenset[ThreatModel]
    corrupted: str
    macs: int
    group: str | None


@dataclass(frozen=True)
class _Further:
    """What some runs have beside attacks. columns: of COLUMNS, a value per point. files: what they are of, by kind."""

    columns: dict[str, list[Any]] = field(default_factory=dict)
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    words: str = ""


def facts(index: PointsIndex, run: Run) -> Facts:
    """Read what a run is compared by. Raises UserError where it is not finished, or damaged."""

    def read() -> tuple[Any, bool]:
        opened = _opened(run)
        manifest, banks = opened.manifest, stored.manifests(opened.folder).values()
        attacked = {one for bank in banks if (one := threat_of(bank.settings)) is not None}
        return {
            "own": astuple(trained(manifest)),
            "attacked": [astuple(one) for one in sorted(attacked)],
            "corrupted": corruptions.describe(opened),
            "macs": manifest.costs.macs[-1],
            "group": (manifest.config.get("tracking") or {}).get("group"),
        }, _alone(opened)

    found = index.answer(index.ask(run.path, "facts", read))
    attacked = frozenset(ThreatModel(*one) for one in found["attacked"])
    return Facts(ThreatModel(*found["own"]), attacked, found["corrupted"], found["macs"], found["group"])


def known(index: PointsIndex, run: Run, ratios: np.ndarray, threat: ThreatModel, corrupted: str = "") -> str:
    """Return the key in the index of what `judged` returns, as JSON; the run is judged where none is known."""

    def work() -> tuple[Any, bool]:
        opened = _opened(run)
        made = judged(opened, ratios, threat, corrupted)
        common, points = made.curves
        return {
            "rows": made.rows,
            "source": made.source,
            "curves": [common, [astuple(point) for point in points]],
        }, _alone(opened)

    return index.ask(run.path, ["points", ratios.tolist(), astuple(threat), corrupted], work)


def _opened(run: Run) -> Run:
    """The run, or another one that does not stay in memory where it was not opened yet."""
    return run if run.opened else Run.open(**run.arguments)


def _alone(run: Run) -> bool:
    """Return whether the run is judged by this program's own code alone."""
    return all(target.partition(".")[0] in NO_PLUGINS for target in targets(run.manifest.config))


def judged(run: Run, ratios: np.ndarray, threat: ThreatModel, corrupted: str = "") -> Points:
    """Judge the operating points of a run; its banks are not kept.

    corrupted: what its corrupted images are, in words, to judge the points on them too; empty: not on them.
    Raises UserError when banks are missing.
    """
    folder, manifest, banks = run.folder, run.manifest, network_banks(run, threat)
    if CLEAN not in banks:
        raise UserError(f"{folder.path} has no clean test logits: run `rdi attack run={folder.path}` first")
    attacked = {attack: bank for attack, bank in banks.items() if attack != CLEAN}
    calibration = run.bank(CLEAN, "calibration")
    clean = banks[CLEAN]
    score, costs = build(score_node(manifest.config["threshold"]), "threshold.score"), manifest.costs
    policies = curves.fitted(calibration.logits, score, ratios)
    logits = {attack: Bank(bank.logits, bank.labels, bank.skipped) for attack, bank in banks.items()}
    budgeted = curves.budgeted(policies, logits, costs)
    at = {(point.setting, point.bank): point for point in budgeted}
    worst_of = curves.WORST if len(attacked) > 1 else next(iter(attacked), "")
    each = [*policies.values()]
    further = [_certified(run, each, threat), *([_corrupted(run, each, corrupted)] if corrupted else [])]
    values = {key: column for one in further for key, column in one.columns.items()}
    worst_images = len(next(iter(attacked.values())).indices) if attacked else None
    rows = [
        {
            "ratio": ratio,
            "clean_accuracy": at[ratio, CLEAN].accuracy,
            "worst_accuracy": at[ratio, worst_of].accuracy if attacked else None,
            "mean_macs": at[ratio, CLEAN].mean_macs,
            "mean_macs_paper": at[ratio, CLEAN].mean_macs_paper,
            "macs_plain": costs.macs_plain,
            "clean_images": len(clean.indices),
            "worst_images": worst_images,
            **{key: values[key][place] if key in values else None for key in COLUMNS},
            "thresholds": " ".join(f"{value:.6g}" for value in policy.values),
        }
        for place, (ratio, policy) in enumerate(policies.items())
    ]
    made = caption(manifest, (bank.manifest for bank in banks.values()))
    worst = f"; worst of {len(attacked)} on {worst_images:,} images" if attacked else ""
    source = {
        "run": str(folder.path),
        "conditions": "".join([made, worst, *(one.words for one in further)]),
        "identity": manifest.identity,
        "checkpoint_sha256": manifest.checkpoint_sha256,
        "score": score_node(manifest.config["threshold"]),
        "banks": {str(path): bank_sha256(path) for path in (folder.bank("test", attack) for attack in banks)},
        **{key: files for one in further for key, files in one.files.items()},
    }
    points = curves.anytime(logits, costs) + budgeted
    return Points(rows, source, ({"macs_plain": costs.macs_plain, "macs_plain_paper": costs.macs_plain_paper}, points))


def _certified(run: Run, policies: Sequence[ThresholdPolicy], threat: ThreatModel) -> _Further:
    found = certify.certify_points(run, policies, threat)
    if not found:
        return _Further()
    images = len(found[0].right)
    path = run.folder.bounds("test", None if threat == trained(run.manifest) else threat)
    columns: dict[str, list[Any]] = {
        "certified_accuracy": [float(one.right.double().mean()) for one in found],
        "certified_macs": [float(one.costs(run.manifest.costs.macs).mean()) for one in found],
        "certified_images": [images] * len(found),
    }
    return _Further(columns, {"bounds": {str(path): sha256(path)}}, f"; certified on {images:,} images for {threat}")


def _corrupted(run: Run, policies: Sequence[ThresholdPolicy], words: str) -> _Further:
    kinds, severities = corruptions.complete(run)
    banks = corruptions.load(run, kinds, severities)
    if not banks:
        return _Further()
    images = len(next(iter(banks.values())).indices)
    right = [evaluating.accuracies(policies, bank.logits, bank.labels) for bank in banks.values()]
    columns = {
        "corruption_accuracy": np.mean(right, axis=0).tolist(),
        "corruption_images": [images] * len(policies),
    }
    files = {str(path): bank_sha256(path) for name, path in run.folder.corrupted("test").items() if name in banks}
    return _Further(columns, {"corrupted": files}, f"; {words} on {images:,} images")


def score_node(rule: dict[str, Any]) -> dict[str, Any]:
    """Return the score of a threshold rule's node, or of the rule in it; entropy for a rule without one."""
    while "rule" in rule:
        rule = rule["rule"]
    return rule.get("score", {"_target_": "rdi.thresholds.Entropy"})
