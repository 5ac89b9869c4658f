"""Judge the banks of a run: fit thresholds on them, record accuracy and cost, and the worst case over attacks."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rdi import evaluating
from rdi.attacks.engine import DEFAULT_ENGINE
from rdi.banks import CLEAN, LogitsBank, bank_sha256, common_images, of_most_images
from rdi.config import canonised
from rdi.errors import UserError
from rdi.prediction_intervals import prediction_intervals
from rdi.records import BankManifest, EvalRecord, Manifest, Thresholds, WorstRecord, read, write
from rdi.runs import crafting, policies, stored
from rdi.runs.folder import Run
from rdi.threats import ThreatModel, choose, in_order, trained, without_threat
from rdi.threats import threat as threat_of
from rdi.thresholds import Bank, Calibration, Policy, Rule
from rdi.thresholds.rules import NOT_CERTIFIED

logger = logging.getLogger("rdi")


def calibrate(run: Run, rule: Rule, name: str, node: dict[str, Any]) -> Thresholds:
    """Clean logits of the calibration split, and the thresholds that `rule` makes of them, stored with the run."""
    # overwrite: a training that was killed here may have left one of other weights
    how = crafting.Crafting(seed=run.manifest.seed, batch_size=250, engine=DEFAULT_ENGINE, overwrite=True)
    crafting.make_bank(run, run.data.calibration, CLEAN, None, how)
    return fit_thresholds(run, rule, name, node)


def fit_thresholds(run: Run, rule: Rule, name: str, node: dict[str, Any]) -> Thresholds:
    """Fit `rule` on the calibration banks and store the result. Raises UserError when one that it needs is missing."""
    folder, manifest = run.folder, run.manifest
    if not folder.bank("calibration", CLEAN).is_dir():
        raise UserError(f"{folder.path} has no calibration logits: run `rdi attack run={folder.path}` first")
    wanted = [CLEAN] if rule.data == CLEAN else folder.banks("calibration")
    banks = {attack: run.bank(attack, "calibration") for attack in wanted}
    groups = by_threat(banks)
    # of one threat model, as every worst case is
    made = groups.get(choose(groups, trained(manifest), None, str(folder.path)), {})
    attacked = of_most_images(made)
    _say_left_out(run, made, attacked)
    if rule.data != CLEAN and not attacked:
        raise UserError(
            f"threshold.data={rule.data} needs attacked calibration images, and {folder.path} has none: run "
            f"`rdi attack run={folder.path} split=calibration attack=average` first"
        )
    clean = banks[CLEAN]
    if attacked:
        clean = clean.beginning_with(next(iter(attacked.values())).indices)
    calibration = Calibration(
        clean.logits,
        clean.labels,
        manifest.costs,
        {attack: Bank(bank.logits, bank.labels, bank.skipped) for attack, bank in attacked.items()},
        clean.skipped,
    )
    policy = rule.fit(calibration)
    record = Thresholds(
        name=name,
        rule=canonised(node),
        values=policy.values,
        split=clean.manifest.split,
        samples=clean.manifest.samples,
        bank_sha256=bank_sha256(folder.bank("calibration", CLEAN)),
        checkpoint_sha256=clean.manifest.checkpoint_sha256,
        policy=policy.describe(),
        facts=rule.facts(calibration, policy),
        expected=prediction_intervals(
            rule, policy, calibration, {attack: _test_images(run, attack) for attack in banks}
        ),
        attacked_sha256={attack: bank_sha256(folder.bank("calibration", attack)) for attack in attacked},
    )
    write(folder.thresholds(name), record)
    if reason := record.facts.get(NOT_CERTIFIED):
        logger.warning("threshold=%s: %s", name, reason)
    return record


def _test_images(run: Run, attack: str) -> int:
    """On how many test images a bank is, or will be unless `samples` says otherwise."""
    path = run.folder.bank("test", attack) / "manifest.json"
    return read(path, BankManifest).samples if path.is_file() else run.manifest.data.samples["test"]


def stored_thresholds(run: Run, name: str) -> Thresholds:
    """Read the thresholds called `name`. Raises UserError when they are of other weights or missing."""
    run.policy(name)
    return policies.read_thresholds(run.folder, name)


def threshold_name(choice: str, node: dict[str, Any], manifest: Manifest, changed: bool) -> str:
    """Name for thresholds: the config file's, `choice`, with a hash behind it when options of it were `changed`.

    The rule that the run was made with keeps its plain name: attacks aim at it under that.
    """
    if (choice, node) == (manifest.choices["threshold"], manifest.config["threshold"]):
        return choice
    if not changed:
        return choice
    return f"{choice}-{hashlib.sha256(json.dumps(node, sort_keys=True).encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Judgement:
    """Records of a policy under one threat model. records: clean first, then every attack. worst: None of no attack."""

    threat: ThreatModel
    records: list[EvalRecord]
    worst: WorstRecord | None


def evaluate_run(run: Run, thresholds: Thresholds, split: str = "test") -> list[Judgement]:
    """Judge as `judge` does, and store the records with the run."""
    folder, found = run.folder, judge(run, thresholds, split)
    for one in found:
        for record in one.records:
            write(folder.evaluation(thresholds.name, split, record.attack), record)
        if one.worst is not None:
            write(stored.worst_file(folder, run.manifest, thresholds.name, split, one.threat), one.worst)
    return found


def judge(run: Run, thresholds: Thresholds, split: str = "test", only: Container[str] | None = None) -> list[Judgement]:
    """Judge every bank of `split` under the thresholds, and the worst case of each threat model; nothing is stored.

    An image that fools the policy counts, whoever it was made for. The run's own threat model is first, others follow
    by size. only: names of the banks to judge. Raises UserError when there are no banks, or they are of the split
    that the thresholds were fitted on.
    """
    folder, manifest = run.folder, run.manifest
    names = in_order(folder.banks(split), thresholds.name)
    banks = {name: run.bank(name, split) for name in names if only is None or name in only}
    if not banks:
        option = "" if split == "test" else f" split={split}"
        raise UserError(f"{folder.path} has no attacked images: run `rdi attack run={folder.path}{option}` first")
    policy = policies.policy(thresholds)
    records, outcomes = {}, {}
    for name, bank in banks.items():
        if bank.manifest.split == thresholds.split:
            raise UserError(f"thresholds fitted on the {thresholds.split} split cannot be judged on it")
        outcomes[name] = evaluating.judge(bank.logits, bank.labels, policy, bank.skipped)
        records[name] = EvalRecord(
            run=folder.name,
            data=manifest.data.name,
            split=bank.manifest.split,
            attack=name,
            settings=bank.manifest.settings,
            threshold=thresholds.name,
            values=thresholds.values,
            samples=bank.manifest.samples,
            seed=bank.manifest.seed,
            exit_accuracy=outcomes[name].exit_accuracy,
            draws=policy.draws,
            bank_sha256=bank_sha256(folder.bank(split, name)),
            checkpoint_sha256=bank.manifest.checkpoint_sha256,
            **asdict(evaluating.summarise(outcomes[name], manifest.costs)),
        )
    own = trained(manifest)
    clean = [records[CLEAN]] if CLEAN in records else []
    groups = by_threat(banks)
    if not groups:
        return [Judgement(own, clean, None)]
    found = []
    for threat in sorted(groups, key=lambda one: (one != own, one)):
        worst = _worst(run, threat, groups[threat], policy, thresholds)
        found.append(Judgement(threat, [*clean, *(records[name] for name in groups[threat])], worst))
    return found


def _worst(
    run: Run, threat: ThreatModel, banks: Mapping[str, LogitsBank], policy: Policy, thresholds: Thresholds
) -> WorstRecord:
    """The worst case over attacks of one threat model, on the images of the largest of their banks.

    A bank of fewer images would shrink it to these: such ones are left out by name, and counted apart.
    """
    counted = of_most_images(banks)
    outcomes = {
        name: evaluating.judge(bank.logits, bank.labels, policy, bank.skipped) for name, bank in counted.items()
    }
    right = evaluating.worst_case(outcomes.values())
    low, high = evaluating.interval(right)
    fewer = tuple(name for name in banks if name not in counted)
    common = common_images(banks) if fewer else {}
    all_right = (
        evaluating.worst_case(
            evaluating.judge(bank.logits, bank.labels, policy, bank.skipped) for bank in common.values()
        )
        if common
        else None
    )
    aims = {name: bank.manifest.settings.get("policy") for name, bank in counted.items()}
    first = next(iter(banks.values())).manifest
    return WorstRecord(
        run=run.folder.name,
        data=run.manifest.data.name,
        split=first.split,
        eps=threat.eps,
        norm=threat.norm,
        attacks=tuple(counted),
        others=tuple(name for name, aim in aims.items() if aim is not None and aim != repr(policy)),
        threshold=thresholds.name,
        samples=right.shape[-1],
        seed=first.seed,
        accuracy=float(right.double().mean()),
        accuracy_low=low,
        accuracy_high=high,
        checkpoint_sha256=run.manifest.checkpoint_sha256 or "",
        draws=policy.draws,
        fewer=fewer,
        common_samples=None if all_right is None else all_right.shape[-1],
        common_accuracy=None if all_right is None else float(all_right.double().mean()),
        transfer=_transfer({without_threat(name): one for name, one in outcomes.items()}, run.manifest.exits),
    )


def _transfer(outcomes: dict[str, evaluating.Outcome], exits: int) -> tuple[tuple[float, ...], ...] | None:
    """Accuracy of every exit on the images made against each exit; None when not every exit was attacked."""
    names = [f"single_exit{k}" for k in range(exits)]
    if exits < 2 or any(name not in outcomes for name in names):
        return None
    return tuple(outcomes[name].exit_accuracy for name in names)


def network_banks(run: Run, threat: ThreatModel) -> dict[str, LogitsBank]:
    """Test banks of the clean images and of attacks on the network alone, of the images of the largest of these.

    Those aimed at one policy would make its point of a sweep look worse than its neighbours, which nobody aimed at.
    """
    banks = {
        name: run.bank(name)
        for name, manifest in stored.manifests(run.folder).items()
        if manifest.settings.get("policy") is None and threat_of(manifest.settings) in (None, threat)
    }
    clean = {name: bank for name, bank in banks.items() if name == CLEAN}
    attacked = {name: bank for name, bank in banks.items() if name != CLEAN}
    counted = of_most_images(attacked)
    _say_left_out(run, attacked, counted)
    return clean | counted


def _say_left_out(run: Run, banks: Mapping[str, LogitsBank], counted: Mapping[str, LogitsBank]) -> None:
    """Log which banks are of fewer images than the others, and so not counted with them."""
    if left := [f"{name} ({bank.manifest.samples})" for name, bank in banks.items() if name not in counted]:
        most = next(iter(counted.values())).manifest.samples
        logger.warning("%s: left out, as made of fewer than %d images: %s", run.path, most, ", ".join(left))


def by_threat(banks: Mapping[str, LogitsBank]) -> dict[ThreatModel, dict[str, LogitsBank]]:
    """Group the banks under attack by threat model: a worst case is over one."""
    found: dict[ThreatModel, dict[str, LogitsBank]] = {}
    for name, bank in banks.items():
        if (one := threat_of(bank.manifest.settings)) is not None:
            found.setdefault(one, {})[name] = bank
    return found
