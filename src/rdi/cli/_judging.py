"""What the banks of a run say: thresholds fitted on them, records of accuracy and cost, the worst case over attacks."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from typing import Any

from rdi import evaluating
from rdi.attacks.engine import DEFAULT_ENGINE
from rdi.banks import CLEAN, LogitsBank, bank_sha256
from rdi.cli import _assemble, _crafting, _edge
from rdi.errors import UserError
from rdi.expecting import expect
from rdi.folders import RunFolder
from rdi.records import BankManifest, EvalRecord, Manifest, Thresholds, WorstRecord, read, write
from rdi.thresholds import Bank, Calibration, Policy, Rule

logger = logging.getLogger("rdi")


def calibrate(subject: _crafting.Subject, rule: Rule, name: str, node: dict[str, Any]) -> Thresholds:
    """Clean logits of the calibration split, and the thresholds that `rule` makes of them, stored with the run."""
    # overwrite: a training that was killed here may have left one of other weights
    how = _crafting.Crafting(seed=subject.manifest.seed, batch_size=250, engine=DEFAULT_ENGINE, overwrite=True)
    _crafting.make_bank(subject, subject.data.calibration, CLEAN, None, how)
    return fit_thresholds(subject.folder, rule, name, node)


def fit_thresholds(folder: RunFolder, rule: Rule, name: str, node: dict[str, Any]) -> Thresholds:
    """Fit `rule` on the calibration banks and store the result. Raises UserError when one that it needs is missing."""
    manifest = read(folder.manifest, Manifest)
    if not folder.bank("calibration", CLEAN).is_dir():
        raise UserError(f"{folder.path} has no calibration logits: run `rdi attack run={folder.path}` first")
    wanted = {CLEAN: folder.bank("calibration", CLEAN)} if rule.data == CLEAN else folder.banks("calibration")
    banks = {attack: LogitsBank.load(path) for attack, path in wanted.items()}
    for attack, bank in banks.items():
        if bank.manifest.checkpoint_sha256 != manifest.checkpoint_sha256:
            raise UserError(
                f"{wanted[attack]} is of other weights: delete it and run `rdi attack run={folder.path}"
                f"{'' if attack == CLEAN else ' split=calibration'}` again"
            )
    attacked = attacked_banks(banks)
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
        {attack: Bank(bank.logits, bank.labels) for attack, bank in attacked.items()},
    )
    policy = rule.fit(calibration)
    record = Thresholds(
        name=name,
        rule=node,
        values=policy.values,
        split=clean.manifest.split,
        samples=clean.manifest.samples,
        bank_sha256=bank_sha256(wanted[CLEAN]),
        checkpoint_sha256=clean.manifest.checkpoint_sha256,
        policy=policy.describe(),
        facts=rule.facts(calibration, policy),
        expected=expect(
            rule, policy, calibration, {attack: _test_images(folder, manifest, attack) for attack in banks}
        ),
        attacked_sha256={attack: bank_sha256(wanted[attack]) for attack in attacked},
    )
    write(folder.thresholds(name), record)
    return record


def _test_images(folder: RunFolder, manifest: Manifest, attack: str) -> int:
    """On how many test images a bank is, or will be unless `samples` says otherwise."""
    path = folder.bank("test", attack) / "manifest.json"
    return read(path, BankManifest).samples if path.is_file() else manifest.data.samples["test"]


def threshold_name(choice: str, node: dict[str, Any]) -> str:
    """Name for thresholds: the config file's, with a hash behind it when options were changed on the command line."""
    changed = ("threshold.", "threshold@")  # an option, or the rule inside a rule
    if not any(word.lstrip("+~").startswith(changed) for word in _edge.overrides()):
        return choice
    return f"{choice}-{hashlib.sha256(json.dumps(node, sort_keys=True).encode()).hexdigest()[:6]}"


def evaluate(
    folder: RunFolder, thresholds: Thresholds, split: str = "test"
) -> tuple[list[EvalRecord], WorstRecord | None]:
    """Judge every bank of `split` under the thresholds, and the per-sample worst case over the attacks; all stored.

    Raises UserError when there are no banks, or they are of the split that the thresholds were fitted on.
    """
    manifest = folder.read_finished()
    banks = {name: LogitsBank.load(path) for name, path in folder.banks(split).items()}
    if not banks:
        option = "" if split == "test" else f" split={split}"
        raise UserError(f"{folder.path} has no attacked images: run `rdi attack run={folder.path}{option}` first")
    policy = _assemble.policy(thresholds)
    banks = {name: bank for name, bank in banks.items() if _aims_at(bank, policy, folder)}
    records, outcomes = [], {}
    for name, bank in banks.items():
        if bank.manifest.split == thresholds.split:
            raise UserError(f"thresholds fitted on the {thresholds.split} split cannot be judged on it")
        if bank.manifest.checkpoint_sha256 != manifest.checkpoint_sha256:
            raise UserError(f"{folder.bank(split, name)} is of other weights: run `rdi attack` with overwrite=true")
        outcomes[name] = evaluating.judge(bank.logits, bank.labels, policy)
        record = EvalRecord(
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
        write(folder.evaluation(thresholds.name, split, name), record)
        records.append(record)
    attacked = attacked_banks(banks)
    if not attacked:
        return records, None
    right = evaluating.worst_case([outcomes[name] for name in attacked])
    low, high = evaluating.interval(right)
    worst = WorstRecord(
        run=folder.name,
        data=manifest.data.name,
        split=split,
        attacks=tuple(attacked),
        threshold=thresholds.name,
        samples=right.shape[-1],
        seed=next(iter(attacked.values())).manifest.seed,
        accuracy=float(right.double().mean()),
        accuracy_low=low,
        accuracy_high=high,
        checkpoint_sha256=manifest.checkpoint_sha256 or "",
        draws=policy.draws,
        transfer=_transfer(outcomes, manifest.exits),
    )
    write(folder.evaluation(thresholds.name, split, "worst"), worst)
    return records, worst


def _transfer(outcomes: dict[str, evaluating.Outcome], exits: int) -> tuple[tuple[float, ...], ...] | None:
    """Accuracy of every exit on the images made against each exit; None when not every exit was attacked."""
    names = [f"single_exit{k}" for k in range(exits)]
    if exits < 2 or any(name not in outcomes for name in names):
        return None
    return tuple(outcomes[name].exit_accuracy for name in names)


def _aims_at(bank: LogitsBank, policy: Policy, folder: RunFolder) -> bool:
    """Whether a bank is of an attack on this policy, or of one on the network alone."""
    aim = bank.manifest.settings.get("policy")
    if aim is None or aim == repr(policy):
        return True
    logger.info("%s: %s aims at other thresholds and is left out", folder.path, bank.manifest.attack)
    return False


def network_banks(folder: RunFolder) -> dict[str, LogitsBank]:
    """Test banks of the clean images and of attacks on the network alone.

    Those aimed at one policy would make its point of a sweep look worse than its neighbours, which nobody aimed at.
    """
    banks = {attack: LogitsBank.load(path) for attack, path in folder.banks("test").items()}
    return {attack: bank for attack, bank in banks.items() if bank.manifest.settings.get("policy") is None}


def attacked_banks(banks: dict[str, LogitsBank]) -> dict[str, LogitsBank]:
    """The banks under attack. Raises UserError unless all hold the same samples, as a worst case needs."""
    attacked = {name: bank for name, bank in banks.items() if name != CLEAN}
    counts = {name: bank.manifest.samples for name, bank in attacked.items()}
    if len({bank.indices.tobytes() for bank in attacked.values()}) > 1:
        raise UserError(
            f"the attacks saw different images ({', '.join(f'{name}: {n}' for name, n in counts.items())}), so "
            "there is no worst case over them: run `rdi attack` again with one samples=... and overwrite=true"
        )
    return attacked
