"""Judge a run on corrupted images: a bank for every kind and severity, and what a policy comes to on them."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from rdi import evaluating, signals
from rdi.attacking import attack_split, joined
from rdi.banks import LogitsBank, bank_sha256, read_manifest
from rdi.checks import choice, integer
from rdi.config import build
from rdi.corruptions import COMMON, SEVERITIES, Corruption, Stored
from rdi.data.base import Split
from rdi.errors import Interrupted, UserError
from rdi.records import BankManifest, CorruptionRecord, Plain, Thresholds, write
from rdi.runs import datasets, policies, provenance
from rdi.runs.crafting import accuracies
from rdi.runs.folder import Run
from rdi.runs.options import Attack as Options

logger = logging.getLogger("rdi")


UNUSED = ("attack", "suite", "threat", "thresholds", "label", "engine", "ranks")
"""Options, or groups of them, that say how images are attacked, and by how many processes."""


def refuse_unused(words: Sequence[str]) -> None:
    """Raise UserError for an option typed beside corruption=... that would change nothing."""
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if key != "attack" and key.partition(".")[0] in UNUSED:
            raise UserError(f"{key} changes nothing beside corruption=..., which is no attack: leave one of them out")


def corrupt_run(run: Run, options: Options) -> None:
    """Make the banks of the corruption that the options name; those that are there already stay.

    Raises UserError, before the first image, for what cannot be corrupted, and for banks that were made in another way,
    unless the options say to replace them; Interrupted where a signal came.
    """
    if options.attack is not None:
        raise UserError("attack=... and corruption=... are two commands: give one of them")
    corruption: Corruption = build(options.corruption, "corruption")
    if isinstance(corruption, Stored):
        corruption = corruption.within(datasets.places(run.manifest.config, run.data_root))
    split = choice("split", options.split, ("test", "validation"))
    batch_size = integer("batch_size", options.batch_size, 1)
    run.load()
    corruption.check(run.data, split)
    images = run.data.split(split).sample(options.samples)
    seed = run.manifest.seed if options.seed is None else options.seed
    _clear(run, corruption, images, seed, options.overwrite)
    with signals.stop_on_signals() as stop:
        for kind, severity in itertools.product(corruption.kinds, corruption.severities):
            _make(run, corruption, images, kind, severity, seed, batch_size, stop, options.overwrite)


def _settings(corruption: Corruption, kind: str, severity: int) -> dict[str, Plain]:
    return {"corruption": kind, "severity": severity, **corruption.source()}


def _path(run: Run, split: str, kind: str, severity: int) -> Path:
    return run.folder.path / "corrupted" / f"{split}-{kind}_{severity}"


def _clear(run: Run, corruption: Corruption, images: Split, seed: int, overwrite: bool) -> None:
    """Remove banks that cannot be averaged with new ones. Raises UserError for such ones unless `overwrite`."""
    made = (*corruption.source().values(), seed, len(images), run.manifest.checkpoint_sha256)
    asked = {f"{kind}_{severity}" for kind in corruption.kinds for severity in corruption.severities}
    for name, path in run.folder.corrupted(images.name).items():
        if overwrite and name in asked:
            continue  # made again, damaged or not
        old = read_manifest(path)
        theirs = (old.settings.get("source"), old.seed, old.samples, old.checkpoint_sha256)
        if theirs == made:
            continue
        if not overwrite:
            raise UserError(
                f"{path} is of {old.samples} images by {old.settings.get('source')} with seed {old.seed}, or of other "
                "weights, and a mean is over equal images: ask for the same, or replace all of them with overwrite=true"
            )
        shutil.rmtree(path)


def _make(
    run: Run,
    corruption: Corruption,
    images: Split,
    kind: str,
    severity: int,
    seed: int,
    batch_size: int,
    stop: Callable[[], bool],
    overwrite: bool,
) -> None:
    path, name = _path(run, images.name, kind, severity), f"{kind}_{severity}"
    if path.is_dir() and not overwrite:
        LogitsBank.load(path)  # says what to do about a damaged one
        logger.info("%s: %s on %s is there already", run.path, name, images.name)
        return
    if stop():
        raise Interrupted(f"stopped before {name}; what is done is kept, the same command goes on with the rest")
    made = corruption.corrupt(run.data, images, kind, severity, seed)
    parts = list(
        attack_split(run.network, made.to(run.device), None, seed=seed, batch_size=batch_size, label=name, stop=stop)
    )
    done = sum(len(part.logits) for part in parts)
    if done < len(images):
        raise Interrupted(f"stopped during {name}, which begins again; the same command goes on from there")
    found = joined(parts)
    bank = LogitsBank(
        found.logits,
        images.labels,
        images.indices,
        BankManifest(
            run=run.folder.name,
            split=images.name,
            attack=name,
            settings=_settings(corruption, kind, severity),
            engine={},
            samples=len(images),
            batch_size=batch_size,
            seed=seed,
            linf=float((made.images[:].int() - images.images[:].int()).abs().max()) / 255,
            data=run.data.name,
            fingerprint=run.data.fingerprint,
            checkpoint_sha256=run.manifest.checkpoint_sha256 or "",
            environment=provenance.environment(run.device),
            seconds=found.seconds,
        ),
        found.skipped,
    )
    bank.save(path)
    hits = "/".join(f"{100 * hit:.1f}" for hit in accuracies(bank))
    logger.info("%s: %s on %d %s images, accuracy per exit %s %%", run.path, name, len(images), images.name, hits)


def judge(run: Run, thresholds: Thresholds, split: str = "test") -> CorruptionRecord | None:
    """Judge a policy on the corrupted images of a run and store the record; None where there are none."""
    record = judged(run, thresholds, split)
    if record is not None:
        write(run.folder.corruptions(thresholds.name, split), record)
    return record


def judged(run: Run, thresholds: Thresholds, split: str = "test") -> CorruptionRecord | None:
    """Judge a policy on the corrupted images of a run; None where there are none.

    The mean is over kinds and severities, of those that were made. Raises UserError for banks of other weights.
    """
    folder = run.folder
    kinds, severities = complete(run, split)
    _say_left_out(run, kinds, split)
    banks = load(run, kinds, severities, split)
    if not banks:
        return None
    names = [[f"{kind}_{severity}" for severity in severities] for kind in kinds]
    first = next(iter(banks.values()))
    policy, costs = policies.policy(thresholds), run.manifest.costs
    outcomes = {name: evaluating.judge(bank.logits, bank.labels, policy, bank.skipped) for name, bank in banks.items()}
    summaries = {name: evaluating.summarise(outcome, costs) for name, outcome in outcomes.items()}
    # every image is right by the share of its corruptions, as by that of draws
    correct = torch.cat([torch.atleast_2d(outcome.correct) for outcome in outcomes.values()])
    low, high = evaluating.interval(correct)
    shares = torch.tensor([summary.exit_share for summary in summaries.values()], dtype=torch.double).mean(dim=0)
    mean_macs = sum(summary.mean_macs for summary in summaries.values()) / len(summaries)
    return CorruptionRecord(
        run=folder.name,
        data=run.manifest.data.name,
        split=split,
        threshold=thresholds.name,
        values=thresholds.values,
        samples=len(first.indices),
        seed=first.manifest.seed,
        draws=policy.draws,
        source=str(first.manifest.settings["source"]),
        kinds=kinds,
        severities=severities,
        accuracy=float(correct.double().mean()),
        accuracy_low=low,
        accuracy_high=high,
        accuracies=tuple(tuple(summaries[name].accuracy for name in row) for row in names),
        mean_macs_of=tuple(tuple(summaries[name].mean_macs for name in row) for row in names),
        exit_share=tuple(shares.tolist()),
        mean_macs=mean_macs,
        saving=1 - mean_macs / costs.macs_plain,
        checkpoint_sha256=run.manifest.checkpoint_sha256 or "",
        banks_sha256={name: bank_sha256(folder.corrupted(split)[name]) for name in banks},
    )


def complete(run: Run, split: str = "test") -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the kinds and severities that there are banks of; a kind that lacks a severity is left out."""
    banks = [read_manifest(path) for path in run.folder.corrupted(split).values()]
    there = {(str(one.settings["corruption"]), one.settings["severity"]) for one in banks}
    severities = tuple(severity for severity in SEVERITIES if any(one == severity for _, one in there))
    found = {kind for kind, _ in there}
    named = (kind for kind in COMMON if kind in found)
    return tuple(kind for kind in named if all((kind, severity) in there for severity in severities)), severities


def _say_left_out(run: Run, kinds: Sequence[str], split: str = "test") -> None:
    """Log which kinds are not among `kinds`, as not made at every severity."""
    begun = {name.rpartition("_")[0] for name in run.folder.corrupted(split)}
    if left := [kind for kind in COMMON if kind in begun and kind not in kinds]:
        logger.warning(
            "%s: left out, as not made at every severity: %s; the same rdi attack goes on with them",
            run.path,
            ", ".join(left),
        )


def describe(run: Run) -> str:
    """Name the corruptions that a mean over the test images is over, and their source; empty where there are none.

    A kind that was not made at every severity is left out, which is logged.
    """
    kinds, severities = complete(run)
    _say_left_out(run, kinds)
    if not kinds:
        return ""
    found = run.folder.corrupted("test")[f"{kinds[0]}_{severities[0]}"]
    listed = "all 15 corruptions" if kinds == COMMON else f"corruptions {', '.join(kinds)}"
    return f"{listed} at severity {', '.join(map(str, severities))} ({read_manifest(found).settings['source']})"


def load(run: Run, kinds: Sequence[str], severities: Sequence[int], split: str = "test") -> dict[str, LogitsBank]:
    """Read the banks of corrupted images by name, kind by kind. Raises UserError for banks of other weights or images.

    kinds, severities: as `complete` returns them.
    """
    paths = run.folder.corrupted(split)
    banks = {name: LogitsBank.load(paths[name]) for kind in kinds for one in severities for name in [f"{kind}_{one}"]}
    for name, bank in banks.items():
        if bank.manifest.checkpoint_sha256 != run.manifest.checkpoint_sha256 or not np.array_equal(
            bank.indices, next(iter(banks.values())).indices
        ):
            raise UserError(
                f"{paths[name]} is of other weights or images than the others: run `rdi attack "
                f"run={run.path} corruption=... overwrite=true`"
            )
    return banks
