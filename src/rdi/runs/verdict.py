"""Evaluation of a run: records, pictures of the early exits, and the text of its tables."""

from __future__ import annotations

from pathlib import Path

from rdi import checks
from rdi.banks import CLEAN
from rdi.config import build
from rdi.errors import UserError
from rdi.evaluating import early_exit_curve, efficacy
from rdi.records import CertificateRecord, CorruptionRecord, Size, Thresholds, read
from rdi.report import certificates, eps_curves, sizes, suites, tables, terminal
from rdi.report import corruptions as corrupted
from rdi.runs import certify, corruptions, policies, stored
from rdi.runs.evaluate import Judgement, evaluate_run, fit_thresholds, stored_thresholds, threshold_name
from rdi.runs.folder import Run
from rdi.runs.identity import UNGATED
from rdi.runs.options import Evaluate
from rdi.runs.outcome import Outcome, objectives
from rdi.storage import write_bytes
from rdi.threats import caption, display_name, strength, trained
from rdi.tracking import Wandb

JUDGED = ("test", "validation")
"""Splits that neither weights nor thresholds were made from."""


def thresholds(run: Run, options: Evaluate, choice: str | None, *, typed: bool) -> Thresholds:
    """Return the stored thresholds that the options name, or fit the rule that they give, or the run's own.

    choice: name of that rule; typed: an option of it was changed. Raises UserError for stored ones and a rule.
    """
    checks.choice("split", options.split, JUDGED)
    if options.thresholds is not None:
        if options.threshold is not None:
            raise UserError("thresholds=... judges by stored ones, threshold=... fits new ones: give one of them")
        return stored_thresholds(run, options.thresholds)
    manifest = run.manifest
    node = manifest.config["threshold"] if options.threshold is None else options.threshold
    own = choice if options.threshold is not None and choice else manifest.choices["threshold"]
    name = threshold_name(own, node, manifest, typed)
    return fit_thresholds(run, build(node, "threshold"), name, node)


def evaluate(run: Run, thresholds: Thresholds, options: Evaluate) -> list[Judgement]:
    """Judge every bank of a split, store the records, draw the curves and tell the tracking.

    Raises UserError for a split without banks.
    """
    split = checks.choice("split", options.split, JUDGED)
    tracking: Wandb = build(options.tracking, "tracking")
    # drawn last, from the records: while it is missing this was not finished
    run.folder.early_exit(thresholds.name, split).unlink(missing_ok=True)
    found = evaluate_run(run, thresholds, split)
    own = trained(run.manifest)
    for one in found:
        draw_curves(run, one)
    with tracking.start(run.path, "run", run.manifest.config) as log:
        named = "" if split == "test" else f"{split}/"
        log.summary({f"{named}{key}": value for key, value in _scalars(run, found).items()})
        for one in found:
            apart = "" if one.threat == own else f"@{one.threat.word}"
            log.table(f"{named}evaluation{apart}", *tables.evaluation_figures(one.records, one.worst))
    return found


def outcome(run: Run, found: list[Judgement]) -> Outcome:
    """Return what a sweep is told: the objectives under the run's own threat model, and what `text` recorded beside."""
    first, folder = found[0].records[0], run.folder
    measured = objectives(found[0].records, found[0].worst)
    other = None if found[0].threat == trained(run.manifest) else found[0].threat
    beside: dict[str, float] = {}
    path = folder.certificate(first.threshold, first.split, other)
    if path.is_file() and folder.bounds(first.split, other).is_file():
        beside["certified"] = read(path, CertificateRecord).accuracy
    if folder.corrupted(first.split) and (path := folder.corruptions(first.threshold, first.split)).is_file():
        beside["corrupted"] = read(path, CorruptionRecord).accuracy
    return Outcome(str(run.path), False, measured, first.split, first.threshold, beside)


def text(run: Run, thresholds: Thresholds, found: list[Judgement], split: str) -> str:
    """Render the tables: one per threat model, certificates, accuracy against eps, transfer between exits."""
    folder, manifest = run.folder, run.manifest
    banks = stored.manifests(folder, split)
    certified = certify.judge_all(run, thresholds, split)
    lines = []
    for number, one in enumerate(found):
        held = "" if split == "test" else f" ({split} images, held out of training)"
        lines.append(f"\n{folder.path}: {caption(manifest, [banks[record.attack] for record in one.records])}{held}")
        if not number:
            lines.append(policy_lines(thresholds))
        rows = tables.evaluation_rows(one.records, one.worst, certified.pop(one.threat, None))
        lines.append(f"\n{terminal.table(*rows, cut=tables.PAPER)}")
        if left := tables.excluded(one.worst):
            lines.append(f"\n{left}")
    if CLEAN not in banks:
        lines.append(
            f"\nno row of clean images: {folder.bank(split, CLEAN)} is missing; any rdi attack makes it, as "
            f"`rdi attack run={folder.path}{'' if split == 'test' else f' split={split}'}`"
        )
    lines.append(tables.footnote(manifest.costs))
    if _gated(run):
        lines.append("efficacy and early-exit curves are of the exits alone, as if all gates were open")
    # of balls that nobody attacked in
    lines += [f"\n{certificates.lines(record, manifest.costs)}" for record in certified.values()]
    if (common := corruptions.judge(run, thresholds, split)) is not None:
        lines.append(f"\n{corrupted.caption(common)}\n\n{terminal.table(*corrupted.rows(common))}")
    if folder.size.is_file():
        size = sizes.describe(read(folder.size, Size), manifest.costs)
        lines.append(f"compressed ({manifest.choices['compression']}): {size}")
    everything = list({record.attack: record for one in found for record in one.records}.values())
    for norm, name in checks.NORMS.items():
        mine = [one for one in found if one.threat.norm == norm]
        if len(mine) < 2:
            continue
        records = list({record.attack: record for one in mine for record in one.records}.values())
        worst = [one.worst for one in mine if one.worst is not None]
        title = "accuracy % against eps" + ("" if norm == checks.LINF else f" in {name}")
        lines.append(f"\n{title}:\n\n{terminal.table(*eps_curves.table(records, worst))}")
        if differing := eps_curves.note(worst):
            lines.append(f"\n{differing}")
    if split == "test" and (promises := tables.predictions(thresholds.expected, everything)):
        apart = "\n" if len(found) > 1 else ""
        lines.append(apart + "\n".join(promises))
    for one in found:
        if one.worst is not None and one.worst.transfer is not None:
            lines.append(
                f"\nhow images made against one exit fare at the others, {one.threat}:\n\n"
                f"{suites.transfer(one.worst.transfer)}"
            )
    lines += [f"\nearly-exit curves, {one.threat}:\n{_picture(run, one)} (.svg, .pdf)" for one in found]
    return "\n".join(lines)


def _picture(run: Run, judged: Judgement) -> Path:
    """Return the file of the early-exit curves under a threat model."""
    first = judged.records[0]
    other = None if judged.threat == trained(run.manifest) else judged.threat
    return run.folder.early_exit(first.threshold, first.split, other)


def draw_curves(run: Run, judged: Judgement) -> None:
    """Draw how early-exiting survives each attack, beside the records."""
    manifest, first = run.manifest, judged.records[0]
    curves = {
        display_name(record.attack, record.threshold, record.settings): (
            early_exit_curve(record.exit_share, manifest.costs.macs),
            efficacy(record.exit_share, manifest.costs.macs),
        )
        for record in judged.records
    }
    title = (
        f"{manifest.backbone} on {manifest.data.name}, {strength(r.settings for r in judged.records)}, "
        f"exit policy {first.threshold}"
    )
    for kind, drawing in suites.early_exit(curves, title, gated=_gated(run)).items():
        write_bytes(_picture(run, judged).with_suffix(f".{kind}"), drawing)


def _gated(run: Run) -> bool:
    return run.manifest.config.get("gates", UNGATED) != UNGATED


def policy_lines(thresholds: Thresholds) -> str:
    """Describe the exit policy, and what its fit says."""
    facts = tables.facts(thresholds.facts)
    return (
        f"exit policy {thresholds.name}, fitted on {thresholds.samples} calibration images: "
        f"{policies.policy(thresholds)}{chr(10) + facts if facts else ''}"
    )


def _scalars(run: Run, found: list[Judgement]) -> dict[str, float]:
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
            other = "" if one.threat == trained(run.manifest) else f"@{one.threat.word}"
            values[f"worst{other}/accuracy"] = one.worst.accuracy
    return values
