"""The stages behind the commands, on a finished run: calibrate, attack, evaluate. Shared by `rdi run`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from rdi import evaluating, signals
from rdi.attacking import Attacked, attack_split
from rdi.attacks.base import Attack
from rdi.attacks.engine import DEFAULT_ENGINE, Engine
from rdi.banks import HalfBank, LogitsBank, bank_sha256
from rdi.cli import _assemble, _edge, _gallery, _rehearse
from rdi.data.base import DataSet, Split
from rdi.errors import Interrupted, UserError
from rdi.exits import MultiExitNet
from rdi.expecting import expect
from rdi.folders import RunFolder
from rdi.records import BankManifest, EvalRecord, Manifest, Plain, Thresholds, WorstRecord, read, write
from rdi.thresholds import Bank, Calibration, Policy, Rule

logger = logging.getLogger("rdi")
CLEAN = "clean"
AIMED_AT = "@"
"""Between an adaptive attack's name and the thresholds that it aims at, in the names of banks."""


@dataclass(frozen=True)
class Subject:
    """A network to be judged, with its run folder, its data and the device it is on."""

    folder: RunFolder
    manifest: Manifest
    net: MultiExitNet
    data: DataSet
    where: torch.device


@dataclass(frozen=True, kw_only=True)
class Crafting:
    """How banks are made. overwrite: replace those made in another way instead of refusing."""

    seed: int
    batch_size: int
    engine: Engine
    overwrite: bool = False


def make_bank(
    subject: Subject,
    split: Split,
    name: str,
    attack: Attack | None,
    how: Crafting,
    stop: Callable[[], bool] = lambda: False,
) -> LogitsBank:
    """Attack `split` and store the bank, unless the same one is there already; go on with one that was interrupted.

    Raises UserError when there is a bank that was made in another way.
    """
    weights = subject.manifest.checkpoint_sha256
    assert weights is not None, "a bank names the weights it was made with: judge a network after its run has them"
    folder, path = subject.folder, subject.folder.bank(split.name, name)
    # clean logits depend neither on chance nor on how attacks compute
    settings = {} if attack is None else attack.identity()
    engine: dict[str, Plain] = {} if attack is None else asdict(how.engine)
    if path.is_dir() and not how.overwrite:
        old = LogitsBank.load(path)
        stored = old.manifest
        if (
            (attack is None or (stored.seed, stored.batch_size, stored.engine) == (how.seed, how.batch_size, engine))
            and stored.settings == settings
            and np.array_equal(old.indices, split.indices)
            and stored.checkpoint_sha256 == weights
        ):
            logger.info("%s: %s on %s is there already", folder.path, name, split.name)
            keep_images(subject, split, attack, how, old, _gallery.Catch(_gallery_rows(subject, split)), stop)
            return old
        raise UserError(
            f"{path} was made with other settings or of other images (samples {stored.samples}, "
            f"batch_size {stored.batch_size}, seed {stored.seed}, {stored.settings}, engine {stored.engine}): "
            "replace it with overwrite=true"
        )
    identity = json.dumps(
        [settings, engine, how.seed, how.batch_size, split.indices.tolist(), weights, str(subject.where)]
    )
    half = folder.half_bank(split.name, name)
    begun = None if how.overwrite else HalfBank.load(half, identity)
    if begun:
        logger.info("%s: %s goes on after %d of %d images", folder.path, name, len(begun.logits), len(split))
    seen = _gallery.Catch(_gallery_rows(subject, split), len(begun.logits) if begun else 0)
    done = attack_split(
        subject.net,
        split.to(subject.where),
        attack,
        seed=how.seed,
        batch_size=how.batch_size,
        label=name,
        engine=how.engine,
        begun=Attacked(begun.logits, begun.linf, begun.seconds) if begun else None,
        keep=lambda part: HalfBank(part.logits, part.linf, part.seconds, identity).save(half),
        stop=stop,
        see=seen,
    )
    if done is None:
        raise Interrupted(f"stopped during {name}; what is done is kept, the same command goes on with the rest")
    bank = LogitsBank(
        done.logits,
        split.labels,
        split.indices,
        BankManifest(
            run=folder.name,
            split=split.name,
            attack=name,
            settings=settings,
            engine=engine,
            samples=len(split),
            batch_size=how.batch_size,
            seed=how.seed,
            linf=done.linf,
            data=subject.data.name,
            fingerprint=subject.data.fingerprint,
            checkpoint_sha256=weights,
            environment=_edge.environment(subject.where),
            seconds=done.seconds,
        ),
    )
    bank.save(path)
    half.unlink(missing_ok=True)
    keep_images(subject, split, attack, how, bank, seen, stop)
    hits = (bank.logits.argmax(dim=2) == bank.labels[:, None]).double().mean(dim=0)
    logger.info(
        "%s: %s on %d %s images, accuracy per exit %s %%, %.1f s",
        folder.path,
        name,
        len(split),
        split.name,
        "/".join(f"{100 * float(hit):.1f}" for hit in hits),
        done.seconds,
    )
    return bank


def _gallery_rows(subject: Subject, split: Split) -> list[int]:
    """Rows of `split` that the gallery shows; none but of the test split."""
    return _gallery.rows(split, subject.data.test) if split.name == subject.data.test.name else []


def keep_images(
    subject: Subject,
    split: Split,
    attack: Attack | None,
    how: Crafting,
    bank: LogitsBank,
    seen: _gallery.Catch,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Keep the few images of `bank` that the report shows; those not `seen` are crafted anew."""

    def craft(few: Split, see: Callable[[torch.Tensor], None]) -> torch.Tensor | None:
        done = attack_split(
            subject.net,
            few.to(subject.where),
            attack,
            seed=how.seed,
            batch_size=how.batch_size,
            label=bank.manifest.attack,
            engine=how.engine,
            stop=stop,
            see=see,
        )
        return None if done is None else done.logits

    _gallery.keep(subject.folder, bank, split, seen, craft, lambda: _edge.environment(subject.where))


def calibrate(subject: Subject, rule: Rule, name: str, node: dict[str, Any]) -> Thresholds:
    """Clean logits of the calibration split, and the thresholds that `rule` makes of them, stored with the run."""
    # overwrite: a training that was killed here may have left one of other weights
    how = Crafting(seed=subject.manifest.seed, batch_size=250, engine=DEFAULT_ENGINE, overwrite=True)
    make_bank(subject, subject.data.calibration, CLEAN, None, how)
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


def aimed(attacks: dict[str, Attack], policy: Policy, thresholds: str) -> dict[str, Attack]:
    """The attacks on a policy bound to this one, called NAME@thresholds; those on the network alone as they are."""
    found = {}
    for name, attack in attacks.items():
        bound = attack.for_policy(policy)
        found[name if bound is attack else f"{name}{AIMED_AT}{thresholds}"] = bound
    return found


def run_suite(
    subject: Subject,
    attacks: dict[str, Attack],
    how: Crafting,
    samples: int | None,
    thresholds: str | None = None,
    split: str = "test",
) -> None:
    """Banks of the clean split and of every attack on a sample of `samples` of its images (None: all).

    thresholds: name of those that adaptive attacks aim at; None: those that the run was trained with. Raises
    UserError before the first attack when an option does not fit the network or the data.
    """
    data, exits = subject.data, subject.net.exits
    name = thresholds or subject.manifest.choices["threshold"]
    attacks = aimed(attacks, _assemble.load_thresholds(subject.folder.path, name), name)
    images = data.split(split)
    _rehearse.suite(subject.net, attacks, images, samples=samples, batch_size=how.batch_size)
    expanded = {
        name + suffix: one for name, attack in attacks.items() for suffix, one in attack.per_exit(exits).items()
    }
    with signals.stop_on_signals() as stop:
        if not subject.folder.bank("calibration", CLEAN).is_dir():
            make_bank(subject, data.calibration, CLEAN, None, how)
        make_bank(subject, images, CLEAN, None, how, stop)
        for name, attack in expanded.items():
            make_bank(subject, images.sample(samples), name, attack, how, stop)


def threshold_name(choice: str, node: dict[str, Any]) -> str:
    """Name for thresholds: the config file's, with a hash behind it when options were changed on the command line."""
    changed = ("threshold.", "threshold@")  # an option, or the rule inside a rule
    if not any(word.lstrip("+~").startswith(changed) for word in _edge.overrides()):
        return choice
    return f"{choice}-{hashlib.sha256(json.dumps(node, sort_keys=True).encode()).hexdigest()[:6]}"


def evaluate(folder: RunFolder, thresholds: Thresholds) -> tuple[list[EvalRecord], WorstRecord | None]:
    """Judge every test bank under the thresholds, and the per-sample worst case over the attacks; all stored.

    Raises UserError when there are no banks, or they are of the split that the thresholds were fitted on.
    """
    manifest = folder.read_finished()
    banks = {name: LogitsBank.load(path) for name, path in folder.banks("test").items()}
    if not banks:
        raise UserError(f"{folder.path} has no attacked images: run `rdi attack run={folder.path}` first")
    policy = _assemble.policy(thresholds)
    banks = {name: bank for name, bank in banks.items() if _aims_at(bank, policy, folder)}
    records, outcomes = [], {}
    for name, bank in banks.items():
        if bank.manifest.split == thresholds.split:
            raise UserError(f"thresholds fitted on the {thresholds.split} split cannot be judged on it")
        if bank.manifest.checkpoint_sha256 != manifest.checkpoint_sha256:
            raise UserError(f"{folder.bank('test', name)} is of other weights: run `rdi attack` with overwrite=true")
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
            bank_sha256=bank_sha256(folder.bank("test", name)),
            checkpoint_sha256=bank.manifest.checkpoint_sha256,
            **asdict(evaluating.summarise(outcomes[name], manifest.costs)),
        )
        write(folder.evaluation(thresholds.name, "test", name), record)
        records.append(record)
    attacked = attacked_banks(banks)
    if not attacked:
        return records, None
    right = evaluating.worst_case([outcomes[name] for name in attacked])
    low, high = evaluating.interval(right)
    worst = WorstRecord(
        run=folder.name,
        data=manifest.data.name,
        split="test",
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
    write(folder.evaluation(thresholds.name, "test", "worst"), worst)
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
