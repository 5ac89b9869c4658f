"""`rdi evaluate`: judge the stored logits of a run under an exit policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rdi import checks
from rdi.banks import CLEAN
from rdi.cli import _edge, _hydra
from rdi.cli._console import say
from rdi.cli._outcome import Outcome, objectives
from rdi.config import build
from rdi.errors import UserError
from rdi.evaluating import early_exit_curve, efficacy
from rdi.folders import RunFolder
from rdi.records import Manifest, Size, Thresholds, WorstRecord, read
from rdi.report import certificates, eps_curves, sizes, suites, tables, terminal
from rdi.runs import certify, policies, stored
from rdi.runs.evaluate import Judgement, evaluate_run, fit_thresholds, stored_thresholds, threshold_name
from rdi.runs.folder import Run
from rdi.storage import write_bytes
from rdi.threats import Threat, caption, shown, strength, trained
from rdi.tracking import Tracking

JUDGED = ("test", "validation")
"""Splits that neither weights nor thresholds were made from."""


def run(cfg: DictConfig) -> Outcome:
    """Evaluate the run that `cfg` names and print the tables."""
    config = _edge.resolved(cfg)
    opened = Run.open(config["run"])
    manifest = opened.manifest
    with opened.folder.hold():
        if config["thresholds"] is not None:
            if config["threshold"] is not None:
                raise UserError("thresholds=... judges by stored ones, threshold=... fits new ones: give one of them")
            found = evaluate(opened, config, stored_thresholds(opened, config["thresholds"]))
        elif config["threshold"] is None:
            found = fitted(opened, {**config, "threshold": manifest.config["threshold"]}, manifest.choices["threshold"])
        else:
            found = fitted(opened, config, _edge.choices()["threshold"])
    first = found[0]
    policy = first.records[0].threshold
    return Outcome(str(opened.path), False, objectives(first.records, first.worst), config["split"], policy)


def fitted(run: Run, config: dict[str, Any], choice: str) -> list[Judgement]:
    """Fit the rule of `config`, called `choice`, and evaluate by it."""
    checks.choice("split", config["split"], JUDGED)
    name = threshold_name(choice, config["threshold"], run.manifest, _edge.typed_rule())
    rule = build(config["threshold"], "threshold")
    return evaluate(run, config, fit_thresholds(run, rule, name, config["threshold"]))


def evaluate(run: Run, config: dict[str, Any], thresholds: Thresholds) -> list[Judgement]:
    """Judge every bank of the config's split by the thresholds, store the records, print a table per threat model.

    Raises UserError for a split without banks.
    """
    split = checks.choice("split", config["split"], JUDGED)
    folder, manifest = run.folder, run.manifest
    _hydra.log_to(folder.log)
    tracking: Tracking = build(config["tracking"], "tracking")
    # drawn last, from the records: while it is missing this was not finished
    folder.early_exit(thresholds.name, split).unlink(missing_ok=True)
    found = evaluate_run(run, thresholds, split)
    banks = stored.manifests(folder, split)
    certified = certify.judge_all(folder, thresholds, split)
    for number, one in enumerate(found):
        held = "" if split == "test" else f" ({split} images, held out of training)"
        say(f"\n{folder.path}: {caption(manifest, [banks[record.attack] for record in one.records])}{held}")
        if not number:
            say(policy_lines(thresholds))
        rows = tables.evaluation_rows(one.records, one.worst, certified.pop(one.threat, None))
        say(f"\n{terminal.table(*rows, cut=tables.PAPER)}")
        if left := tables.left_out(one.worst):
            say(f"\n{left}")
    if CLEAN not in banks:
        say(
            f"\nno row of clean images: {folder.bank(split, CLEAN)} is missing; any rdi attack makes it, as "
            f"`rdi attack run={folder.path}{'' if split == 'test' else f' split={split}'}`"
        )
    say(tables.footnote(manifest.costs))
    for record in certified.values():  # of balls that nobody attacked in
        say(f"\n{certificates.lines(record, manifest.costs)}")
    if folder.size.is_file():
        say(
            f"compressed ({manifest.choices['compression']}): {sizes.describe(read(folder.size, Size), manifest.costs)}"
        )
    everything = list({record.attack: record for one in found for record in one.records}.values())
    if len(found) > 1:
        say(f"\naccuracy % against eps:\n\n{terminal.table(*eps_curves.table(everything, worst_of(found)))}")
        if differing := eps_curves.note(worst_of(found)):
            say(f"\n{differing}")
    if split == "test" and (promises := tables.promises(thresholds.expected, everything)):
        apart = "\n" if len(found) > 1 else ""
        say(apart + "\n".join(promises))
    for one in found:
        if one.worst is not None and one.worst.transfer is not None:
            say(
                f"\nhow images made against one exit fare at the others, {one.threat}:\n\n"
                f"{suites.transfer(one.worst.transfer)}"
            )
    own = trained(manifest)
    for one in found:
        say(f"\nearly-exit curves, {one.threat}:\n{draw_curves(folder, manifest, one, own)} (.svg, .pdf)")
    with tracking.start(folder.path, "run", manifest.config) as log:
        named = "" if split == "test" else f"{split}/"
        log.summary({f"{named}{key}": value for key, value in summary(found, own).items()})
        for one in found:
            apart = "" if one.threat == own else f"@{one.threat.word}"
            log.table(f"{named}evaluation{apart}", *tables.evaluation_figures(one.records, one.worst))
    return found


def worst_of(found: list[Judgement]) -> list[WorstRecord]:
    """The worst cases, one per threat model."""
    return [one.worst for one in found if one.worst is not None]


def draw_curves(folder: RunFolder, manifest: Manifest, judged: Judgement, own: Threat) -> Path:
    """Draw how early-exiting survives each attack, beside the records; where the picture lies."""
    first = judged.records[0]
    curves = {
        shown(record.attack, record.threshold, record.settings): (
            early_exit_curve(record.exit_share, manifest.costs.macs),
            efficacy(record.exit_share, manifest.costs.macs),
        )
        for record in judged.records
    }
    title = (
        f"{manifest.choices['backbone']} on {manifest.data.name}, {strength(r.settings for r in judged.records)}, "
        f"exit policy {first.threshold}"
    )
    path = folder.early_exit(first.threshold, first.split, None if judged.threat == own else judged.threat)
    for kind, drawing in suites.early_exit(curves, title).items():
        write_bytes(path.with_suffix(f".{kind}"), drawing)
    return path


def policy_lines(thresholds: Thresholds) -> str:
    """The exit policy, and what its fit says."""
    facts = tables.facts(thresholds.facts)
    return (
        f"exit policy {thresholds.name}, fitted on {thresholds.samples} calibration images: "
        f"{policies.policy(thresholds)}{chr(10) + facts if facts else ''}"
    )


def summary(found: list[Judgement], own: Threat) -> dict[str, float]:
    """Scalars for tracking; names of banks carry a threat model that is not the run's own."""
    values: dict[str, float] = {}
    for one in found:
        for record in one.records:
            values |= {
                f"{record.attack}/accuracy": record.accuracy,
                f"{record.attack}/mean_macs": record.mean_macs,
                f"{record.attack}/efficacy": record.efficacy or 0.0,
            }
        if one.worst is not None:
            values[f"worst{'' if one.threat == own else f'@{one.threat.word}'}/accuracy"] = one.worst.accuracy
    return values
